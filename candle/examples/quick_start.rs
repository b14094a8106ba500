//! DualAdam in place of candle's AdamW.

use candle_core::{Device, Result, Var};
use candle_nn::Optimizer;
use dualadam::{DualAdamConfig, SwitchSchedule};
use dualadam_candle::DualAdam;

fn main() -> Result<()> {
    let weights = Var::randn(0.0_f32, 1.0, (10, 64), &Device::Cpu)?; // of your model
    let config = DualAdamConfig::adamw(0.01).with_schedule(SwitchSchedule::linear_until(160));
    let mut optimizer = DualAdam::new(vec![weights.clone()], config)?; // was: AdamW::new
    for _ in 0..1000 {
        let loss = weights.sqr()?.mean_all()?;
        optimizer.backward_step(&loss)?;
    }
    println!("the loss: {:.4}", weights.sqr()?.mean_all()?.to_scalar::<f32>()?);
    Ok(())
}
