//! The oracle against the golden trajectories, and the CPU backend over the same runs.

use dualadam::{cpu, reference};
use testkit::contract::U;
use testkit::golden::{self, Golden};

fn close(what: &str, actual: f64, expected: f64, tolerance: f64) {
    assert!((actual - expected).abs() <= tolerance, "{what}: {actual:e}, not {expected:e} ± {tolerance:e}");
}

#[test]
fn the_oracle_replays_every_golden_run() {
    for Golden { name, config, grads, theta0, records } in golden::all() {
        config.validate().unwrap();
        let mut states: Vec<_> =
            theta0.iter().map(|&theta| reference::Element { theta: f64::from(theta), ..Default::default() }).collect();
        for (t, grads) in (1..).zip(&grads) {
            let step = |(x, &grad): (&mut _, &f32)| reference::step(&config, t, x, f64::from(grad));
            let deltas: Vec<_> = states.iter_mut().zip(grads).map(step).collect();
            let Some(record) = records.get(&t) else { continue };
            close(&format!("{name}, α of step {t}"), config.schedule.alpha(t), record.alpha, 1e-12 * record.alpha);
            for (i, (x, delta)) in states.iter().zip(deltas).enumerate() {
                let what = |of| format!("{name}, {of} of element {i} after step {t}");
                let theta = record.theta[i];
                close(&what("θ"), x.theta, theta, 1e-12 * (theta.abs() + f64::from(theta0[i]).abs()));
                close(&what("m"), x.m, record.m[i], 1e-12 * record.m[i].abs());
                close(&what("v"), x.v, record.v[i], 1e-12 * record.v[i].abs());
                close(&what("δ"), delta, record.delta[i], 1e-12 * record.delta[i].abs());
            }
        }
        let steps = grads.len() as u64;
        assert!(
            records.keys().next_back().is_some_and(|&last| last <= steps),
            "{name}: records within its {steps} steps"
        );
    }
}

/// At every recorded step of an f32 run, the second moment is within 60·2⁻²⁴ of the exact one,
/// relatively: it has no cancellation. The slowest average, `long_slow_beta2`, is recorded at steps
/// 1, 1,000 and 20,000; nothing is checked between.
#[test]
fn the_second_moment_of_long_runs_does_not_drift() {
    for Golden { name, config, grads, theta0, records } in golden::all() {
        let len = theta0.len();
        let (mut params, mut exp_avg, mut exp_avg_sq) = (theta0, vec![0.0_f32; len], vec![0.0_f32; len]);
        let mut worst = 0.0_f64;
        for (t, grads) in (1..).zip(&grads) {
            cpu::step(&mut params, grads, &mut exp_avg, &mut exp_avg_sq, &config.coeffs(t).unwrap()).unwrap();
            for (&v, &exact) in exp_avg_sq.iter().zip(records.get(&t).iter().flat_map(|record| &record.v)) {
                if exact > f64::from(f32::MIN_POSITIVE) {
                    worst = worst.max((f64::from(v) - exact).abs() / exact);
                }
            }
        }
        println!("{name}: v within {:.1}·2⁻²⁴ after {} steps", worst / U, grads.len());
        let own = std::env::var_os("DUALADAM_GOLDEN_DIR").is_none();
        // A run from another folder may be longer, or have a larger beta2.
        assert!(!own || worst <= 60.0 * U, "{name}: v is off by {:.1}·2⁻²⁴", worst / U);
    }
}
