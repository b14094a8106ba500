//! Steps of single variables: what is read and written, and what is refused.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Storage, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use dualadam::DualAdamConfig;
use dualadam_candle::DualAdam;

/// Numbers in ±`scale`, the same in every run, of which none is close to 0.
fn numbers(len: usize, seed: u32, scale: f32) -> Vec<f32> {
    let number = |i: u32| (i * 7 + seed).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32 * 2.0 - 1.0;
    (0..len as u32).map(|i| scale * (number(i) + 0.1 * number(i).signum())).collect()
}

fn var(values: &[f32]) -> Var {
    Var::new(values, &Device::Cpu).unwrap()
}

/// The gradients of a loss that has these.
fn grads(of: &[(&Var, &[f32])]) -> GradStore {
    let terms = of.iter().map(|(var, grads)| (var.as_tensor() * Tensor::new(*grads, &Device::Cpu).unwrap()).unwrap());
    let terms: Vec<_> = terms.map(|term| term.sum_all().unwrap()).collect();
    Tensor::stack(&terms, 0).unwrap().sum_all().unwrap().backward().unwrap()
}

fn values(var: &Var) -> Vec<f32> {
    var.to_vec1().unwrap()
}

/// What an error says, without the backtrace that candle adds where `RUST_BACKTRACE` asks for it.
fn message(error: candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Where a variable's elements are.
fn address(var: &Var) -> usize {
    let (storage, _) = var.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { panic!("it is on the CPU") };
    storage.as_slice::<f32>().unwrap().as_ptr().addr()
}

#[test]
fn variables_are_written_where_they_are_and_only_with_a_gradient() {
    let (a, b) = (var(&[1.0, -2.0]), var(&[3.0]));
    let places = [address(&a), address(&b)];
    let mut optimizer = DualAdam::new(vec![a.clone(), b.clone()], DualAdamConfig::adam()).unwrap();
    optimizer.step(&grads(&[(&a, &[1.0, -1.0])])).unwrap();
    assert_eq!((values(&a), values(&b)), (vec![0.999, -1.999], vec![3.0]));
    // Each variable counts its own steps. This is the first of `b`, and Adam's first step is lr.
    optimizer.step(&grads(&[(&a, &[0.0, 0.0]), (&b, &[0.5])])).unwrap();
    assert_eq!(values(&b), [2.999]);
    assert_eq!([address(&a), address(&b)], places);
}

#[test]
fn the_learning_rate_is_that_of_the_next_step() {
    let x = var(&[1.0]);
    let mut optimizer = DualAdam::new(vec![x.clone()], DualAdamConfig::adam()).unwrap();
    optimizer.set_learning_rate(0.25);
    assert_eq!(optimizer.learning_rate(), 0.25);
    optimizer.backward_step(&x.sum_all().unwrap()).unwrap();
    assert_eq!(values(&x), [0.75]);
}

/// Each variable's operation runs inside that of the one before, on a test's stack of 2 MiB.
#[test]
fn a_thousand_variables_are_one_step() {
    let vars: Vec<_> = (0..1_000).map(|_| var(&[1.0])).collect();
    let grads = grads(&vars.iter().map(|var| (var, [1.0].as_slice())).collect::<Vec<_>>());
    DualAdam::new(vars.clone(), DualAdamConfig::adam()).unwrap().step(&grads).unwrap();
    assert!(vars.iter().all(|var| values(var) == [0.999]));
}

#[test]
fn no_variable_and_no_gradient_are_fine() {
    let x = var(&[1.0]);
    let grads = x.sum_all().unwrap().backward().unwrap();
    let integers = Var::zeros(3, DType::U32, &Device::Cpu).unwrap();
    DualAdam::new(vec![integers], DualAdamConfig::adam()).unwrap().step(&grads).unwrap();
    let y = var(&[1.0]);
    DualAdam::new(vec![y.clone()], DualAdamConfig::adam()).unwrap().step(&grads).unwrap();
    assert_eq!(values(&y), [1.0]);
}

#[test]
fn bad_variables_are_refused_by_name() {
    let refused = |vars, config| match DualAdam::new(vars, config) {
        Ok(_) => panic!("it was taken"),
        Err(error) => message(error),
    };
    let (x, wide) = (var(&[1.0]), Var::zeros((2, 3), DType::F64, &Device::Cpu).unwrap());
    let error = refused(vec![x.clone(), wide], DualAdamConfig::adam());
    assert_eq!(error, "variable 1 (F64 [2, 3]) must be f32, bf16 or f16, and is F64");
    let error = refused(vec![x.clone(), var(&[1.0]), x.clone()], DualAdamConfig::adam());
    assert_eq!(error, "variable 2 (F32 [1]) must have memory of its own, and shares that of variable 0");
    let error = refused(vec![x], DualAdamConfig::adam().with_lr(f64::NAN));
    assert!(error.contains("lr"), "{error}");
}

#[test]
fn bad_gradients_are_refused_by_name_before_anything_is_written() {
    let a = var(&[1.0]);
    let b = Var::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
    let mut optimizer = DualAdam::new(vec![a.clone(), b.clone()], DualAdamConfig::adam()).unwrap();
    let good = (a.sum_all().unwrap() + b.sum_all().unwrap()).unwrap().backward().unwrap();
    let one = b.ones_like().unwrap();
    let the_gradient = "the gradient of variable 1 (F32 [2, 2]) must";
    for (grads, what) in [
        (one.t().unwrap(), "be contiguous, and has strides [1, 2]"),
        (one.flatten_all().unwrap(), "have its type and shape, and has F32 [4]"),
        (one.to_dtype(DType::BF16).unwrap(), "have its type and shape, and has BF16 [2, 2]"),
        (b.as_detached_tensor(), "have memory of its own, and has that of variable 1"),
    ] {
        let mut bad = (a.sum_all().unwrap() + b.sum_all().unwrap()).unwrap().backward().unwrap();
        bad.insert(&b, grads);
        assert_eq!(message(optimizer.step(&bad).unwrap_err()), format!("{the_gradient} {what}"));
    }
    optimizer.set_learning_rate(-1.0);
    assert!(message(optimizer.step(&good).unwrap_err()).contains("lr"));
    assert_eq!((values(&a), b.to_vec2::<f32>().unwrap()), (vec![1.0], vec![vec![1.0; 2]; 2]));
    // None of them was counted: this is the first step.
    optimizer.set_learning_rate(1e-3);
    optimizer.step(&good).unwrap();
    assert_eq!((values(&a), b.to_vec2::<f32>().unwrap()), (vec![0.999], vec![vec![0.999; 2]; 2]));
}

#[test]
fn a_gradient_may_begin_inside_its_memory() {
    let x = var(&[1.0, 1.0]);
    let mut grads = x.sum_all().unwrap().backward().unwrap();
    grads.insert(&x, Tensor::new(&[9.0_f32, 9.0, 1.0, -1.0], &Device::Cpu).unwrap().narrow(0, 2, 2).unwrap());
    DualAdam::new(vec![x.clone()], DualAdamConfig::adam()).unwrap().step(&grads).unwrap();
    assert_eq!(values(&x), [0.999, 1.001]);
}

/// A number, and how far what was computed for it in f32 may be from it.
#[derive(Clone, Copy)]
struct Rounded {
    value: f64,
    error: f64,
}

/// Half a unit in the last place of 1, and a little for the roundings of the test's own f64.
const U: f64 = 1.000_001 / (1_u32 << 24) as f64;

impl Rounded {
    fn exact(value: f64) -> Self {
        Self { value, error: 0.0 }
    }

    /// After one more rounding to f32.
    fn rounded(self) -> Self {
        let error = self.error + U * (self.value.abs() + self.error) + 2.0_f64.powi(-150);
        Self { error, ..self }
    }

    fn constant(value: f64) -> Self {
        Self::exact(value).rounded()
    }

    /// The product before it is rounded.
    fn product(self, by: Self) -> Self {
        let error = self.value.abs() * by.error + by.value.abs() * self.error + self.error * by.error;
        Self { value: self.value * by.value, error }
    }

    fn mul(self, by: Self) -> Self {
        self.product(by).rounded()
    }

    fn add(self, to: Self) -> Self {
        Self { value: self.value + to.value, error: self.error + to.error }.rounded()
    }

    fn sub(self, what: Self) -> Self {
        self.add(Self { value: -what.value, ..what })
    }

    fn div(self, by: Self) -> Self {
        let value = self.value / by.value;
        let error = (self.error + value.abs() * by.error) / (by.value.abs() - by.error);
        Self { value, error }.rounded()
    }

    fn sqrt(self) -> Self {
        let value = self.value.sqrt();
        let error = self.error / (value + (self.value - self.error).max(0.0).sqrt());
        Self { value, error }.rounded()
    }

    /// fma(weight, to - self, self), where `to - self` is rounded once.
    fn lerp(self, weight: Self, to: f64) -> Self {
        let way = Self { value: to - self.value, error: 0.0 };
        // The error of `self` counts with the factor 1 - weight.
        let own = (1.0 - weight.value + weight.error) * self.error;
        let subtraction = (weight.value + weight.error) * U * (way.value.abs() + self.error);
        let error = own + subtraction + weight.error * way.value.abs();
        Self { value: self.value + weight.value * way.value, error }.rounded()
    }
}

const ZERO: Rounded = Rounded { value: 0.0, error: 0.0 };

/// Parameter and moments of one element, under both optimizers.
struct Element {
    ours: [Rounded; 3],
    candles: [Rounded; 3],
}

impl Element {
    fn new(param: f32) -> Self {
        let state = [Rounded::exact(param.into()), ZERO, ZERO];
        Self { ours: state, candles: state }
    }

    fn step(&mut self, config: &ParamsAdamW, grad: f64, t: i32) {
        let (bc1, bc2) = (1.0 - config.beta1.powi(t), 1.0 - config.beta2.powi(t));
        self.ours = ours(self.ours, config, grad, bc1, bc2);
        self.candles = candles(self.candles, config, grad, bc1, bc2);
    }
}

/// The operations that `StepCoeffs` documents, in their order.
fn ours([p, m, v]: [Rounded; 3], config: &ParamsAdamW, grad: f64, bc1: f64, bc2: f64) -> [Rounded; 3] {
    let m = m.lerp(Rounded::constant(1.0 - config.beta1), grad);
    let v = v.lerp(Rounded::constant(1.0 - config.beta2), grad * grad);
    let s = v.sqrt().mul(Rounded::constant(1.0 / bc2.sqrt()));
    let q = Rounded::constant(config.lr / bc1).div(s.add(Rounded::constant(config.eps)));
    let decay = Rounded::constant(config.lr * config.weight_decay).mul(p);
    let u = m.product(q);
    let u = Rounded { value: u.value + decay.value, error: u.error + decay.error }.rounded();
    [p.sub(u), m, v]
}

/// The operations of candle's `AdamW::step`, in their order.
fn candles([p, m, v]: [Rounded; 3], config: &ParamsAdamW, grad: f64, bc1: f64, bc2: f64) -> [Rounded; 3] {
    let g = Rounded::exact(grad);
    let m = m.mul(Rounded::constant(config.beta1)).add(g.mul(Rounded::constant(1.0 - config.beta1)));
    let v = v.mul(Rounded::constant(config.beta2)).add(g.mul(g).mul(Rounded::constant(1.0 - config.beta2)));
    let (m_hat, v_hat) = (m.mul(Rounded::constant(1.0 / bc1)), v.mul(Rounded::constant(1.0 / bc2)));
    let update = m_hat.div(v_hat.sqrt().add(Rounded::constant(config.eps))).mul(Rounded::constant(config.lr));
    [p.mul(Rounded::constant(1.0 - config.lr * config.weight_decay)).sub(update), m, v]
}

/// At ξ = 1, the two differ by at most the sum of their error bounds. The gradients are given, so
/// that no difference feeds back.
#[test]
fn with_switching_rate_1_it_is_candles_adamw() {
    const LEN: usize = 1_000;
    let config = ParamsAdamW { lr: 1e-2, weight_decay: 0.1, ..ParamsAdamW::default() };
    let start = numbers(LEN, 1, 2.0);
    let (x, y) = (var(&start), var(&start));
    let ours = DualAdamConfig::adamw(config.weight_decay).with_lr(config.lr);
    let mut ours = DualAdam::new(vec![x.clone()], ours).unwrap();
    let mut candles = AdamW::new(vec![y.clone()], config.clone()).unwrap();
    let mut elements: Vec<_> = start.iter().map(|&param| Element::new(param)).collect();
    let mut worst = 0.0_f64;
    for t in 1..=50 {
        let given = numbers(LEN, 1_000_003 * t, 0.1);
        ours.step(&grads(&[(&x, &given)])).unwrap();
        candles.step(&grads(&[(&y, &given)])).unwrap();
        let (x, y) = (values(&x), values(&y));
        for (i, element) in elements.iter_mut().enumerate() {
            element.step(&config, given[i].into(), t as i32);
            let [[ours, ..], [candles, ..]] = [element.ours, element.candles];
            let off = (f64::from(x[i]) - f64::from(y[i])).abs();
            let bound = ours.error + candles.error;
            worst = worst.max(off / bound);
            assert!(off <= bound, "element {i} after step {t}: {} and {}, bound {bound}", x[i], y[i]);
            assert!((f64::from(x[i]) - ours.value).abs() <= ours.error, "element {i} after step {t}");
            // Small beside the step, so that another step would show.
            assert!(bound < 1e-2 * config.lr, "bound {bound} after step {t}");
        }
    }
    assert!(values(&x) != start);
    println!("at most {worst:.3} of the bound");
}
