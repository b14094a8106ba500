//! Laws that hold for all configurations, lengths, types and values, tried on random ones.

use dualadam::cpu::{self, CopyMut, DualAdam, Grads, ParamsMut, Tensor};
use dualadam::half::{bf16, f16};
use dualadam::{
    Dtype, DualAdamConfig, Element, InverseTerm, State, StepCoeffs, SwitchSchedule, TensorLayout, TensorState,
    WeightDecay,
};
use proptest::prelude::*;
use proptest::test_runner::Config;

/// A failing input is printed with its reasons; nothing is written beside the sources.
fn cases(cases: u32) -> Config {
    Config { cases, failure_persistence: None, ..Config::default() }
}

// Data. Only lengths and seeds are drawn, so that a failing input is short to read; the elements follow from them.

/// A source of numbers that look random.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// In -1..1.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Mostly ordinary numbers; one in sixteen is a zero, subnormal, extreme, infinity or NaN.
    fn any(&mut self) -> f32 {
        const SPECIAL: [f32; 8] = [0.0, -0.0, 1e-45, -1e-39, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let choice = self.bits() % 128;
        SPECIAL.get(choice as usize).copied().unwrap_or_else(|| self.unit() * 8.0)
    }

    fn values(&mut self, dtype: Dtype, len: usize, mut value: impl FnMut(&mut Self) -> f32) -> Values {
        match dtype {
            Dtype::F32 => Values::F32((0..len).map(|_| value(self)).collect()),
            Dtype::Bf16 => Values::Bf16((0..len).map(|_| bf16::narrow(value(self))).collect()),
            Dtype::F16 => Values::F16((0..len).map(|_| f16::narrow(value(self))).collect()),
        }
    }
}

#[derive(Debug, Clone)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

/// Runs the body with the vector of whichever variant.
macro_rules! each {
    ($values:expr, $vector:ident => $body:expr) => {
        match $values {
            Values::F32($vector) => $body,
            Values::Bf16($vector) => $body,
            Values::F16($vector) => $body,
        }
    };
}

impl Values {
    fn len(&self) -> usize {
        each!(self, values => values.len())
    }

    fn split_off(&mut self, at: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(values.split_off(at)),
            Self::Bf16(values) => Self::Bf16(values.split_off(at)),
            Self::F16(values) => Self::F16(values.split_off(at)),
        }
    }

    fn map(&mut self, f: impl Fn(f32) -> f32) {
        fn each<T: Element>(values: &mut [T], f: impl Fn(f32) -> f32) {
            values.iter_mut().for_each(|value| *value = T::narrow(f(value.widen())));
        }
        each!(self, values => each(values, f));
    }

    fn bits(&self) -> Vec<u32> {
        each!(self, values => bits(values))
    }

    fn params(&mut self) -> ParamsMut<'_> {
        each!(self, values => values.into())
    }

    fn grads(&self) -> Grads<'_> {
        each!(self, values => values.into())
    }

    fn copy(&mut self) -> CopyMut<'_> {
        match self {
            Self::F32(_) => unreachable!("copies have 16 bits"),
            Self::Bf16(values) => values.into(),
            Self::F16(values) => values.into(),
        }
    }
}

/// The bits of the widened values, which tell any two numbers apart; NaNs count as one.
fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    let bits = |value: f32| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() };
    values.iter().map(|value| bits(value.widen())).collect()
}

/// Every combination of params, grads and copy that has a kernel.
const KINDS: [(Dtype, Dtype, Option<Dtype>); 11] = [
    (Dtype::F32, Dtype::F32, None),
    (Dtype::F32, Dtype::Bf16, None),
    (Dtype::F32, Dtype::F16, None),
    (Dtype::Bf16, Dtype::Bf16, None),
    (Dtype::Bf16, Dtype::F32, None),
    (Dtype::F16, Dtype::F16, None),
    (Dtype::F16, Dtype::F32, None),
    (Dtype::F32, Dtype::F32, Some(Dtype::Bf16)),
    (Dtype::F32, Dtype::Bf16, Some(Dtype::Bf16)),
    (Dtype::F32, Dtype::F32, Some(Dtype::F16)),
    (Dtype::F32, Dtype::F16, Some(Dtype::F16)),
];

/// One tensor's buffers.
#[derive(Debug, Clone)]
struct Buffers {
    params: Values,
    grads: Values,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    copy: Option<Values>,
}

impl Buffers {
    fn random(kind: (Dtype, Dtype, Option<Dtype>), len: usize, seed: u64) -> Self {
        let noise = &mut Noise(seed);
        Self {
            params: noise.values(kind.0, len, Noise::any),
            grads: noise.values(kind.1, len, Noise::any),
            exp_avg: (0..len).map(|_| noise.any()).collect(),
            exp_avg_sq: (0..len).map(|_| noise.any().abs()).collect(),
            copy: kind.2.map(|dtype| noise.values(dtype, len, Noise::any)),
        }
    }

    fn tensor(&mut self, set: usize) -> Tensor<'_> {
        Tensor {
            params: self.params.params(),
            grads: self.grads.grads(),
            exp_avg: &mut self.exp_avg,
            exp_avg_sq: &mut self.exp_avg_sq,
            copy: self.copy.as_mut().map(Values::copy),
            set,
        }
    }

    /// The flat call for these types.
    fn step(&mut self, coeffs: &StepCoeffs) {
        let Self { params, grads, exp_avg: m, exp_avg_sq: v, copy } = self;
        use Values::{Bf16, F16, F32};
        match (params, grads, copy) {
            (F32(p), F32(g), None) => cpu::step(p, g, m, v, coeffs),
            (F32(p), Bf16(g), None) => cpu::step(p, g, m, v, coeffs),
            (F32(p), F16(g), None) => cpu::step(p, g, m, v, coeffs),
            (Bf16(p), Bf16(g), None) => cpu::step(p, g, m, v, coeffs),
            (Bf16(p), F32(g), None) => cpu::step(p, g, m, v, coeffs),
            (F16(p), F16(g), None) => cpu::step(p, g, m, v, coeffs),
            (F16(p), F32(g), None) => cpu::step(p, g, m, v, coeffs),
            (F32(p), F32(g), Some(Bf16(c))) => cpu::step_with_copy(p, c, g, m, v, coeffs),
            (F32(p), Bf16(g), Some(Bf16(c))) => cpu::step_with_copy(p, c, g, m, v, coeffs),
            (F32(p), F32(g), Some(F16(c))) => cpu::step_with_copy(p, c, g, m, v, coeffs),
            (F32(p), F16(g), Some(F16(c))) => cpu::step_with_copy(p, c, g, m, v, coeffs),
            _ => unreachable!("not one of KINDS"),
        }
        .unwrap();
    }

    fn after(mut self, coeffs: &StepCoeffs) -> [Vec<u32>; 4] {
        self.step(coeffs);
        self.bits()
    }

    fn split_off(&mut self, at: usize) -> Self {
        Self {
            params: self.params.split_off(at),
            grads: self.grads.split_off(at),
            exp_avg: self.exp_avg.split_off(at),
            exp_avg_sq: self.exp_avg_sq.split_off(at),
            copy: self.copy.as_mut().map(|copy| copy.split_off(at)),
        }
    }

    fn bits(&self) -> [Vec<u32>; 4] {
        let copy = self.copy.as_ref().map(Values::bits).unwrap_or_default();
        [self.params.bits(), bits(&self.exp_avg), bits(&self.exp_avg_sq), copy]
    }
}

// Strategies.

fn kind() -> impl Strategy<Value = (Dtype, Dtype, Option<Dtype>)> {
    prop::sample::select(&KINDS[..])
}

/// Mostly short: every remainder of the vector widths. Some lengths are beyond what one thread takes.
fn len() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0), 20 => 1..300_usize, 3 => 32_700..33_000_usize, 1 => 65_500..140_000_usize]
}

fn buffers() -> impl Strategy<Value = Buffers> {
    (kind(), len(), any::<u64>()).prop_map(|(kind, len, seed)| Buffers::random(kind, len, seed))
}

fn schedule() -> impl Strategy<Value = SwitchSchedule> {
    let rate = || prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0, 0.0..1e-3];
    prop_oneof![
        rate().prop_map(|switching_rate| SwitchSchedule::Linear { switching_rate }),
        (1..40_u64).prop_map(SwitchSchedule::linear_until),
        rate().prop_map(|switching_rate| SwitchSchedule::LinearEarlyDrop { switching_rate }),
        (0.0..=1.0, 1..9_u64, 0.0..=1.0).prop_map(|(base, period, cutoff)| SwitchSchedule::Exponential {
            base,
            period,
            cutoff
        }),
        (0..40_u64).prop_map(|switching_step| SwitchSchedule::Fixed { switching_step }),
    ]
}

fn weight_decay() -> impl Strategy<Value = WeightDecay> {
    prop_oneof![
        Just(WeightDecay::None),
        (0.0..0.5).prop_map(WeightDecay::Decoupled),
        (0.0..0.5).prop_map(WeightDecay::L2)
    ]
}

/// Valid and ordinary.
fn config() -> impl Strategy<Value = DualAdamConfig> {
    let scalars = (-6.0..0.0, 0.0..0.9999, 0.0..0.9999, -12.0..-2.0);
    let inverse_term = prop_oneof![Just(InverseTerm::Paper), Just(InverseTerm::WithEps)];
    (scalars, weight_decay(), schedule(), inverse_term, any::<bool>()).prop_map(
        |((lr, beta1, beta2, eps), weight_decay, schedule, inverse_term, maximize)| DualAdamConfig {
            lr: 10_f64.powf(lr),
            beta1,
            beta2,
            eps: 10_f64.powf(eps),
            weight_decay,
            schedule,
            inverse_term,
            maximize,
        },
    )
}

fn coeffs() -> impl Strategy<Value = StepCoeffs> {
    (config(), 1..60_u64, 0.0..2.0)
        .prop_map(|(config, step, multiplier)| config.coeffs_scaled(step, multiplier).unwrap())
}

// Partition, order and threads.

proptest! {
    #![proptest_config(cases(200))]

    /// A buffer cut anywhere, at any alignment, and stepped piece by piece.
    #[test]
    fn split_is_whole(whole in buffers(), coeffs in coeffs(), cuts in prop::collection::vec(0.0..=1.0, 0..4)) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut: &f64| (cut * whole.params.len() as f64) as usize).collect();
        cuts.sort_unstable();
        let mut rest = whole.clone();
        let mut pieces: Vec<_> = cuts.iter().rev().map(|&cut| rest.split_off(cut)).collect();
        pieces.push(rest);
        let pieces = pieces.into_iter().rev().map(|piece| piece.after(&coeffs));
        let joined = pieces.reduce(|mut left, right| {
            left.iter_mut().zip(right).for_each(|(left, right)| left.extend(right));
            left
        });
        prop_assert!(joined.unwrap() == whole.after(&coeffs));
    }

    /// The same within one allocation, so that a piece that writes past its end meets its neighbour.
    #[test]
    fn a_step_in_the_middle_leaves_the_rest(len in 0..200_usize, from in 0.0..=1.0, to in 0.0..=1.0, coeffs in coeffs(), seed: u64) {
        let Buffers { params: Values::F32(p), grads: Values::F32(g), exp_avg: m, exp_avg_sq: v, .. } =
            Buffers::random(KINDS[0], len, seed) else { unreachable!() };
        let (from, to) = ((from * len as f64) as usize, (to * len as f64) as usize);
        let part = from.min(to)..from.max(to);
        let step = |part: std::ops::Range<usize>| {
            let (mut p, mut m, mut v) = (p.clone(), m.clone(), v.clone());
            let inside = part.clone();
            cpu::step(&mut p[inside], &g[part.clone()], &mut m[part.clone()], &mut v[part], &coeffs).unwrap();
            [bits(&p), bits(&m), bits(&v)]
        };
        let (whole, partly) = (step(0..len), step(part.clone()));
        for (buffer, before) in [&p, &m, &v].into_iter().enumerate() {
            for (i, before) in bits(before).into_iter().enumerate() {
                let expected = if part.contains(&i) { whole[buffer][i] } else { before };
                prop_assert_eq!(partly[buffer][i], expected);
            }
        }
    }

    /// A list gives each tensor what the flat call with its set gives, in any order of the list.
    #[test]
    fn a_list_is_its_flat_steps_in_any_order(
        list in prop::collection::vec((buffers(), 0..3_usize), 0..12),
        sets in prop::array::uniform3(coeffs()),
        order: prop::sample::Index,
        seed: u64,
    ) {
        let expected: Vec<_> = list.iter().map(|(buffers, set)| buffers.clone().after(&sets[*set])).collect();
        let mut shuffled: Vec<_> = list.into_iter().enumerate().collect();
        let noise = &mut Noise(seed);
        shuffled.sort_by_cached_key(|_| noise.bits());
        if !shuffled.is_empty() {
            let by = order.index(shuffled.len());
            shuffled.rotate_left(by);
        }
        let mut tensors: Vec<_> = shuffled.iter_mut().map(|(_, (buffers, set))| buffers.tensor(*set)).collect();
        cpu::step_list(&mut tensors, &sets).unwrap();
        for (index, (buffers, _)) in &shuffled {
            prop_assert!(buffers.bits() == expected[*index], "tensor {}", index);
        }
    }
}

fn pools() -> &'static [rayon::ThreadPool; 3] {
    static POOLS: std::sync::OnceLock<[rayon::ThreadPool; 3]> = std::sync::OnceLock::new();
    POOLS.get_or_init(|| [1, 2, 3].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()))
}

proptest! {
    #![proptest_config(cases(24))]

    /// Flat steps and lists give the same bits on one, two and three threads.
    #[test]
    fn threads_do_not_matter(
        list in prop::collection::vec((kind(), prop_oneof![0..2_000_usize, 30_000..300_000_usize]), 1..5),
        coeffs in coeffs(),
        seed: u64,
    ) {
        let list: Vec<_> = list.into_iter().map(|(kind, len)| Buffers::random(kind, len, seed)).collect();
        let run = |pool: &rayon::ThreadPool| pool.install(|| {
            let flat: Vec<_> = list.iter().map(|buffers| buffers.clone().after(&coeffs)).collect();
            let mut list = list.clone();
            let mut tensors: Vec<_> = list.iter_mut().map(|buffers| buffers.tensor(0)).collect();
            cpu::step_list(&mut tensors, &[coeffs]).unwrap();
            (flat, list.iter().map(Buffers::bits).collect::<Vec<_>>())
        });
        let [one, two, three] = pools().each_ref().map(run);
        prop_assert!(one.0 == one.1);
        prop_assert!(one == two);
        prop_assert!(one == three);
    }
}

// The rule.

proptest! {
    #![proptest_config(cases(200))]

    /// Once α is 0, a dual step is the plain Adam step, whatever led there.
    #[test]
    fn after_the_switch_dual_is_adam(config in config(), after in 0..1_000_u64, buffers in buffers()) {
        let Some(switch) = config.schedule.first_adam_step() else { return Ok(()) };
        let Some(step) = switch.checked_add(after) else { return Ok(()) };
        let adam = DualAdamConfig { schedule: DualAdamConfig::adam().schedule, inverse_term: InverseTerm::Paper, ..config };
        let (dual, adam) = (config.coeffs(step).unwrap(), adam.coeffs(step).unwrap());
        prop_assert!(dual.is_adam());
        prop_assert!(buffers.clone().after(&dual) == buffers.after(&adam));
    }

    /// Before the switch it is not: without this, the law above could hold because α is always 0.
    #[test]
    fn before_the_switch_dual_is_not_adam(config in config(), step in 1..60_u64) {
        let alpha = config.schedule.alpha(step);
        prop_assume!(config.lr * alpha > 1e-30);
        prop_assert!(!config.coeffs(step).unwrap().is_adam());
    }

    #[test]
    fn maximising_is_descending_on_the_negated_gradient(config in config(), step in 1..60_u64, buffers in buffers()) {
        let mut negated = buffers.clone();
        negated.grads.map(|g| -g);
        let up = config.with_maximize(true).coeffs(step).unwrap();
        let down = config.with_maximize(false).coeffs(step).unwrap();
        prop_assert!(buffers.after(&up) == negated.after(&down));
    }

    /// A power of two scales a 16-bit gradient without rounding, as long as it stays in range.
    #[test]
    fn a_power_of_two_multiplier_is_a_scaled_gradient(
        config in config(), step in 1..60_u64, power in -6..=6_i32, kind in kind(), len in len(), seed: u64,
    ) {
        let multiplier = 2_f64.powi(power);
        let mut buffers = Buffers::random(kind, len, seed);
        buffers.grads = Noise(seed).values(kind.1, len, |noise| 1.0 + 7.0 * noise.unit().abs());
        let mut scaled = buffers.clone();
        scaled.grads.map(|g| g * multiplier as f32);
        let coeffs = config.coeffs_scaled(step, multiplier).unwrap();
        prop_assert!(buffers.after(&coeffs) == scaled.after(&config.coeffs(step).unwrap()));
    }

    /// The multiplier is rounded to f32 once and the product once, so f32 gradients of any value may be scaled beforehand.
    #[test]
    fn any_multiplier_is_a_scaled_f32_gradient(config in config(), step in 1..60_u64, multiplier in 1e-6..1e6, len in len(), seed: u64) {
        let buffers = Buffers::random(KINDS[0], len, seed);
        let mut scaled = buffers.clone();
        scaled.grads.map(|g| g * multiplier as f32);
        let coeffs = config.coeffs_scaled(step, multiplier).unwrap();
        prop_assert!(buffers.after(&coeffs) == scaled.after(&config.coeffs(step).unwrap()));
    }
}

// The owning optimizer.

/// A tensor of a random model: its types, masters or not, group, and how many steps in eight it has a gradient.
#[derive(Debug, Clone, Copy)]
struct Spec {
    params: Dtype,
    grads: Dtype,
    layout: TensorLayout,
    busy: u64,
}

fn spec() -> impl Strategy<Value = Spec> {
    (kind(), 0..40_usize, 0..2_usize, 0..=8_u64).prop_map(|((params, grads, copy), len, group, busy)| {
        let layout = TensorLayout { len, group, master: copy.is_some() };
        Spec { params: copy.unwrap_or(params), grads, layout, busy }
    })
}

struct Run {
    optimizer: DualAdam,
    params: Vec<Values>,
}

impl Run {
    fn new(groups: &[DualAdamConfig], specs: &[Spec]) -> Self {
        let layout: Vec<_> = specs.iter().map(|spec| spec.layout).collect();
        let optimizer = DualAdam::with_groups(groups, &layout).unwrap();
        let params =
            |(seed, spec): (usize, &Spec)| Noise(seed as u64).values(spec.params, spec.layout.len, Noise::unit);
        Self { optimizer, params: specs.iter().enumerate().map(params).collect() }
    }

    /// The gradients follow from the step and the tensor alone.
    fn steps(&mut self, specs: &[Spec], steps: std::ops::Range<u64>) {
        for step in steps {
            let grads: Vec<_> = specs
                .iter()
                .enumerate()
                .map(|(tensor, spec)| {
                    let mut noise = Noise(step << 32 | (tensor as u64) << 16);
                    (noise.bits() % 8 < spec.busy).then(|| noise.values(spec.grads, spec.layout.len, Noise::unit))
                })
                .collect();
            let grads: Vec<_> = grads.iter().map(|grads| grads.as_ref().map(Values::grads)).collect();
            let mut params: Vec<_> = self.params.iter_mut().map(Values::params).collect();
            self.optimizer.step(&mut params, &grads).unwrap();
        }
    }

    fn bits(&self) -> (Vec<Vec<u32>>, Vec<TensorBits>, Vec<String>) {
        let State { groups, tensors } = self.optimizer.state();
        let groups = groups.iter().map(|group| format!("{group:?}")).collect();
        (self.params.iter().map(Values::bits).collect(), tensors.iter().map(TensorBits::of).collect(), groups)
    }
}

#[derive(Debug, PartialEq)]
struct TensorBits {
    group: usize,
    step: u64,
    buffers: [Vec<u32>; 3],
    master_is_set: Option<bool>,
}

impl TensorBits {
    fn of(tensor: &TensorState) -> Self {
        let master = tensor.master.as_deref().unwrap_or_default();
        Self {
            group: tensor.group,
            step: tensor.step,
            buffers: [bits(&tensor.exp_avg), bits(&tensor.exp_avg_sq), bits(master)],
            master_is_set: tensor.master.as_ref().map(|_| tensor.master_is_set),
        }
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn a_resumed_run_is_an_uninterrupted_one(
        groups in prop::array::uniform2(config()),
        specs in prop::collection::vec(spec(), 0..8),
        before in 0..12_u64,
        after in 0..12_u64,
    ) {
        let mut whole = Run::new(&groups, &specs);
        whole.steps(&specs, 0..before + after);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut first = Run::new(&groups, &specs);
        first.steps(&specs, 0..before);
        first.optimizer.save(&path).unwrap();
        let mut resumed = Run::new(&[DualAdamConfig::default(); 2], &specs);
        resumed.params = first.params;
        resumed.optimizer.load(&path).unwrap();
        resumed.steps(&specs, before..before + after);
        prop_assert_eq!(resumed.bits(), whole.bits());
    }

    /// The optimizer gives each tensor what flat steps over it give, each at the tensor's own count of gradients.
    #[test]
    fn the_optimizer_is_flat_steps_per_tensor(
        groups in prop::array::uniform2(config()),
        specs in prop::collection::vec(spec(), 1..8),
        steps in 0..10_u64,
    ) {
        let mut whole = Run::new(&groups, &specs);
        whole.steps(&specs, 0..steps);
        for (tensor, spec) in specs.iter().enumerate() {
            let start = Noise(tensor as u64).values(spec.params, spec.layout.len, Noise::unit);
            let len = start.len();
            let mut alone = Buffers {
                params: start.clone(),
                grads: Values::F32(vec![]),
                exp_avg: vec![0.0; len],
                exp_avg_sq: vec![0.0; len],
                copy: None,
            };
            if spec.layout.master {
                alone.params = Values::F32(each!(&start, values => values.iter().map(|value| value.widen()).collect()));
                alone.copy = Some(start);
            }
            let mut updates = 0;
            for step in 0..steps {
                let mut noise = Noise(step << 32 | (tensor as u64) << 16);
                if noise.bits() % 8 < spec.busy {
                    updates += 1;
                    alone.grads = noise.values(spec.grads, len, Noise::unit);
                    alone.step(&groups[spec.layout.group].coeffs(updates).unwrap());
                }
            }
            let state = &whole.optimizer.state().tensors[tensor];
            prop_assert_eq!(state.step, updates);
            let [params, exp_avg, exp_avg_sq, copy] = alone.bits();
            prop_assert_eq!(bits(&state.exp_avg), exp_avg);
            prop_assert_eq!(bits(&state.exp_avg_sq), exp_avg_sq);
            if spec.layout.master {
                prop_assert_eq!(state.master_is_set, updates > 0);
                if updates > 0 {
                    prop_assert_eq!(bits(state.master.as_ref().unwrap()), params);
                }
                prop_assert_eq!(whole.params[tensor].bits(), copy);
            } else {
                prop_assert_eq!(whole.params[tensor].bits(), params);
            }
        }
    }
}

// Configurations, sensible or not.

/// Any f64 at all, numbers of any magnitude, and those that hyperparameters live on the edge of.
fn wild() -> impl Strategy<Value = f64> {
    let edges = [
        0.0,
        -0.0,
        1.0,
        0.9,
        0.999,
        1e-8,
        1e-3,
        1.0 - f64::EPSILON / 2.0,
        1.0 + f64::EPSILON,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MAX,
        f64::MIN_POSITIVE,
        5e-324,
        1e-45,
        7e-46,
        7.1e-46,
        1.2e-38,
        3.4e38,
        3.5e38,
        -1.0,
    ];
    prop_oneof![
        2 => prop::sample::select(edges.to_vec()),
        3 => (-60.0..60.0).prop_map(|exponent| 10_f64.powf(exponent)),
        3 => 0.0..1.0,
        1 => any::<u64>().prop_map(f64::from_bits),
    ]
}

/// Often inside 0..1, where a β must be for the rest of the config to matter.
fn wild_fraction() -> impl Strategy<Value = f64> {
    prop_oneof![4 => 0.0..1.0, 2 => (-17.0..0.0).prop_map(|exponent| 1.0 - 10_f64.powf(exponent)), 1 => wild()]
}

fn wild_config() -> impl Strategy<Value = DualAdamConfig> {
    let schedule = prop_oneof![
        wild_fraction().prop_map(|switching_rate| SwitchSchedule::Linear { switching_rate }),
        wild_fraction().prop_map(|switching_rate| SwitchSchedule::LinearEarlyDrop { switching_rate }),
        (wild_fraction(), any::<u64>(), wild_fraction())
            .prop_map(|(base, period, cutoff)| SwitchSchedule::Exponential { base, period, cutoff }),
        any::<u64>().prop_map(|switching_step| SwitchSchedule::Fixed { switching_step }),
        any::<u64>().prop_map(SwitchSchedule::linear_until),
    ];
    let weight_decay =
        prop_oneof![Just(WeightDecay::None), wild().prop_map(WeightDecay::Decoupled), wild().prop_map(WeightDecay::L2)];
    let betas = (wild_fraction(), wild_fraction());
    let inverse_term = prop_oneof![Just(InverseTerm::Paper), Just(InverseTerm::WithEps)];
    (wild(), betas, wild(), weight_decay, schedule, inverse_term, any::<bool>()).prop_map(
        |(lr, (beta1, beta2), eps, weight_decay, schedule, inverse_term, maximize)| DualAdamConfig {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            schedule,
            inverse_term,
            maximize,
        },
    )
}

fn any_step() -> impl Strategy<Value = u64> {
    prop_oneof![1..100_u64, any::<u32>().prop_map(|step| u64::from(step) + 1), 1..=u64::MAX]
}

proptest! {
    #![proptest_config(cases(20_000))]

    /// What `validate` accepts has finite coefficients at every step, and where the gradient and the moments are 0 no step makes
    /// a NaN; what it refuses has none.
    #[test]
    fn a_valid_config_never_makes_nan_of_nothing(config in wild_config(), step in any_step(), multiplier in wild()) {
        if config.validate().is_err() {
            prop_assert!(config.coeffs(step).is_err());
            return Ok(());
        }
        let coeffs = config.coeffs(step).unwrap();
        let scaled = config.coeffs_scaled(step, multiplier).unwrap_or(coeffs);
        for coeffs in [coeffs, scaled] {
            let scalars: &[f32] = bytemuck::cast_slice(bytemuck::bytes_of(&coeffs));
            prop_assert!(scalars.iter().all(|scalar| scalar.is_finite()), "{:?}", coeffs);
            // With L2 decay the parameter is a gradient, so it must be 0 for there to be none.
            let mut params = if coeffs.l2 == 0.0 { [0.0_f32, -0.0, 1.0, -2.5] } else { [0.0, -0.0, 0.0, -0.0] };
            let (mut m, mut v) = ([0.0; 4], [0.0; 4]);
            cpu::step(&mut params, &[0.0_f32, -0.0, 0.0, -0.0], &mut m, &mut v, &coeffs).unwrap();
            prop_assert!(params.iter().all(|p| !p.is_nan()), "{:?} {:?}", params, coeffs);
            prop_assert_eq!((m, v), ([0.0; 4], [0.0; 4]), "{:?}", coeffs);
        }
    }
}

proptest! {
    #![proptest_config(cases(100))]

    /// The state file keeps every bit of every valid config. Many to a file: saving one waits for the disk.
    #[test]
    fn the_state_file_keeps_every_bit_of_a_config(configs in prop::collection::vec(wild_config(), 200), steps in prop::collection::vec(any::<u64>(), 0..5)) {
        let groups: Vec<_> = configs.into_iter().filter(|config| config.validate().is_ok()).collect();
        prop_assume!(!groups.is_empty());
        let tensors = steps.iter().map(|&step| TensorState { step, ..TensorState::default() }).collect();
        let state = State { groups, tensors };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        state.save(&path).unwrap();
        // No two f64 print the same, -0 included, and a valid config has no NaN.
        prop_assert_eq!(format!("{:?}", State::load(&path).unwrap()), format!("{state:?}"));
    }
}
