//! The table, and what may be read from it.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use crate::data::train_len;
use crate::network::Tensors;
use crate::optimizers::{ADAM, Contender, DUAL_LINEAR, INV_ADAM, WARM_UP};
use crate::train::{BATCH, Run, Setting};

/// Columns of the text.
const WIDTH: usize = 96;

/// Mean and standard deviation over the seeds; one seed has no deviation.
struct Spread {
    mean: f64,
    std: Option<f64>,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self { mean, std: (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()) }
    }
}

/// The final test accuracy of each run, in percent.
fn accuracies(runs: &[Run]) -> Vec<f64> {
    runs.iter().filter_map(|run| run.accuracies.last()).map(|accuracy| 100.0 * accuracy).collect()
}

fn mean_loss(runs: &[Run], pick: impl Fn(&[f64]) -> Option<&f64>) -> f64 {
    let losses: Vec<f64> = runs.iter().filter_map(|run| pick(&run.losses).copied()).collect();
    Spread::of(&losses).mean
}

/// The accuracy of `runs` minus that of `base`, seed by seed.
fn differences(runs: &[Run], base: &[Run]) -> Spread {
    let pairs = accuracies(runs).into_iter().zip(accuracies(base));
    Spread::of(&pairs.map(|(accuracy, base)| accuracy - base).collect::<Vec<_>>())
}

/// The setting, the table and the text below it.
pub(crate) fn text(setting: &Setting, contenders: &[Contender], runs: &[Vec<Run>], lr: f64, switch: u64) -> String {
    let heading = heading(setting, runs[ADAM].len(), lr, switch);
    let items: Vec<_> = caveats(setting, contenders, runs, switch).iter().map(|text| item(text)).collect();
    format!("{heading}\n\n{}\n\n{}\n", table(contenders, runs), items.join("\n"))
}

fn heading(setting: &Setting, seeds: usize, lr: f64, switch: u64) -> String {
    let images = setting.digits.len();
    let train = train_len(images);
    let params: usize = Tensors::zeros().slices().iter().map(|slice| slice.len()).sum();
    format!(
        "data      {train} handwritten digits to train on, {} to test\n\
         network   64-128-10, {params} parameters, {}; optimizers on the {}\n\
         training  {} epochs of batch {BATCH} = {} steps, learning rate {lr}, seeds: {seeds}\n\
         switch    DualAdam is plain Adam after step {switch}",
        images - train,
        setting.dtype.name(),
        setting.device.name(),
        setting.epochs,
        setting.steps(),
    )
}

fn table(contenders: &[Contender], runs: &[Vec<Run>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["optimizer", "train loss", "test accuracy, %", "minus Adam's", "optimizer, µs/step"]);
    for (contender, own) in contenders.iter().zip(runs) {
        let difference = match contender.name {
            "Adam" => String::new(),
            _ => with_spread(&differences(own, &runs[ADAM]), true),
        };
        table.add_row([
            contender.name.to_owned(),
            format!("{:.4}", mean_loss(own, <[f64]>::last)),
            with_spread(&Spread::of(&accuracies(own)), false),
            difference,
            format!("{:.1}", median_step_time(own).as_secs_f64() * 1e6),
        ]);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

fn with_spread(spread: &Spread, signed: bool) -> String {
    let mean = if signed { format!("{:+.2}", spread.mean) } else { format!("{:.2}", spread.mean) };
    match spread.std {
        Some(std) => format!("{mean} ± {std:.2}"),
        None => mean,
    }
}

fn median_step_time(runs: &[Run]) -> Duration {
    let mut times: Vec<Duration> = runs.iter().flat_map(|run| run.step_times.iter().copied()).collect();
    let middle = times.len() / 2;
    *times.select_nth_unstable(middle).1
}

/// What may be read from the table. Whatever depends on the numbers is formed from them.
fn caveats(setting: &Setting, contenders: &[Contender], runs: &[Vec<Run>], switch: u64) -> [String; 5] {
    let tested = setting.digits.len() - train_len(setting.digits.len());
    let last_loss = |index: usize| mean_loss(&runs[index], <[f64]>::last);
    [
        format!(
            "± is the standard deviation over the seeds. A seed sets the split, the initialisation and the order of the \
             images, and is the same for all optimizers, so \"minus Adam's\" is taken seed by seed. One test digit is \
             {:.2} points.",
            100.0 / tested as f64
        ),
        verdict(contenders, runs, tested),
        format!(
            "InvAdam alone took the training loss from {:.4} to {:.4}. Its step, lr·m̂·√v̂, is quadratic in the gradient, \
             while the size of Adam's hardly depends on it: at a learning rate made for Adam, small gradients barely move \
             InvAdam. It would need a learning rate of its own.",
            mean_loss(&runs[INV_ADAM], <[f64]>::first),
            last_loss(INV_ADAM),
        ),
        format!(
            "The last row is no DualAdam but its control: Adam whose learning rate rises linearly over the first {switch} \
             steps. DualAdam's linear schedule gives its Adam branch just that factor, so the two differ by the inverse \
             branch alone. DualAdam minus control, seed by seed: {} points of test accuracy; the training losses are \
             {:.4} and {:.4}. As far as that is within the noise, DualAdam is Adam with a warm-up here.",
            with_spread(&differences(&runs[DUAL_LINEAR], &runs[WARM_UP]), true),
            last_loss(DUAL_LINEAR),
            last_loss(WARM_UP),
        ),
        "All optimizers share one learning rate, tuned for none of them, on a small network and few digits: this ranks \
         nothing, and neither confirms nor refutes what is published on large models. The time is the median of one \
         call for a model that fits into the cache, while other runs keep the other cores busy: it says nothing about \
         the speed on large ones."
            .to_owned(),
    ]
}

/// Which optimizers this run can tell from Adam.
fn verdict(contenders: &[Contender], runs: &[Vec<Run>], tested: usize) -> String {
    if runs[ADAM].len() == 1 {
        return "One seed has no spread, so no two optimizers can be told apart: run more.".to_owned();
    }
    let (apart, alike): (Vec<usize>, Vec<usize>) =
        (0..contenders.len()).filter(|&index| index != ADAM).partition(|&index| {
            let noise = f64::max(noise(&runs[index], tested), noise(&runs[ADAM], tested));
            differences(&runs[index], &runs[ADAM]).mean.abs() > 2.0 * noise
        });
    let names = |indices: &[usize]| match indices {
        [] => "none".to_owned(),
        _ => indices.iter().map(|&index| contenders[index].name).collect::<Vec<_>>().join("; "),
    };
    format!(
        "Further from Adam in mean test accuracy than twice the noise of one seed: {}. Closer, so that this run cannot \
         tell them from Adam: {}.",
        names(&apart),
        names(&alike)
    )
}

/// By how much one seed's accuracy is off by chance: what the seeds show, but no less than that of
/// drawing the test set.
fn noise(runs: &[Run], tested: usize) -> f64 {
    let Spread { mean, std } = Spread::of(&accuracies(runs));
    let drawing = (mean * (100.0 - mean) / tested as f64).sqrt();
    f64::max(drawing, std.unwrap_or(0.0))
}

/// The text as a list item, its lines no longer than the table.
fn item(text: &str) -> String {
    let mut lines = vec!["-".to_owned()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < WIDTH => *line += &format!(" {word}"),
            _ => lines.push(format!("  {word}")),
        }
    }
    lines.join("\n")
}
