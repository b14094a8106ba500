use candle_core::{Device, Result, Var};
use candle_nn::Optimizer;
use dualadam::{DualAdamConfig, SwitchSchedule};
use dualadam_candle::DualAdam;

fn main() -> Result<()> {
    let weights = Var::randn(0.0_f32, 1.0, (10, 64), &Device::Cpu)?;
    let config = DualAdamConfig::adamw(0.01).with_schedule(SwitchSchedule::linear_until(160));
    let mut optimizer = DualAdam::new(vec![weights.clone()], config)?; // in place of AdamW
    for _ in 0..1000 {
        optimizer.backward_step(&weights.sqr()?.mean_all()?)?; // the loss of your model
    }
    Ok(println!("{}", weights.get(0)?.get(0)?))
}
