//! DualAdam on the CPU.

use dualadam::{DualAdamConfig, SwitchSchedule, cpu::DualAdam};

fn main() -> Result<(), dualadam::Error> {
    let mut weights = vec![0.5_f32; 1024];
    let schedule = SwitchSchedule::linear_until(160); // plain AdamW from step 160 of 1,000 on
    let config = DualAdamConfig::adamw(0.01).with_lr(1e-2).with_schedule(schedule);
    let mut optimizer = DualAdam::new(config, &[weights.len()])?;
    for _ in 0..1000 {
        let grads = weights.clone(); // from your backward pass
        optimizer.step([(&mut weights).into()], [Some((&grads).into())])?;
    }
    println!("the first weight: {:.0e}", weights[0]);
    Ok(())
}
