//! DualAdam on a CUDA device.

use dualadam::cuda::{DualAdam, Kernels};
use dualadam::{DualAdamConfig, SwitchSchedule};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = DualAdamConfig::adamw(0.01).with_lr(1e-2).with_schedule(SwitchSchedule::linear_until(160));
    let kernels = Kernels::new(0)?; // device 0; Kernels::in_context takes a context of yours
    let stream = kernels.context().default_stream();
    let mut weights = stream.clone_htod(&[0.5_f32; 1024])?;
    let mut optimizer = DualAdam::new(&kernels, &stream, config, &[weights.len()])?;
    for _ in 0..1000 {
        let grads = stream.clone_dtod(&weights)?; // from your backward pass
        optimizer.step([(&mut weights).into()], [Some((&grads).into())])?; // enqueued, no wait
    }
    println!("the first weight: {:.0e}", stream.clone_dtoh(&weights)?[0]);
    Ok(())
}
