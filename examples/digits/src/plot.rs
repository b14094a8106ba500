//! The picture: training loss, test error and α over the steps.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::optimizers::{Contender, WARM_UP};
use crate::picture::{self, FONT};
use crate::train::{Run, Setting};

/// Large enough to be scaled down: thick lines are drawn without smoothing.
const SIZE: (u32, u32) = (2400, 2600);
const HEADER: u32 = 260;
/// Where the first panel ends and where the second does, below the header. The last has the steps
/// below it.
const BREAKS: [i32; 2] = [780, 1560];

const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);

/// Colour and width of the contenders' lines, in their order. The colours are those of Okabe and
/// Ito, which the colour-blind can tell apart. Where lines lie on each other, the thin one is drawn
/// later and the thick one shows on both sides.
const LINES: [(RGBColor, u32); 7] = [
    (RGBColor(0, 0, 0), 10),
    (RGBColor(86, 180, 233), 4),
    (RGBColor(230, 159, 0), 10),
    (RGBColor(213, 94, 0), 10),
    (RGBColor(0, 158, 115), 6),
    (RGBColor(0, 114, 178), 6),
    (RGBColor(70, 20, 90), 4),
];

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Curve = Vec<(f64, f64)>;

/// Draws the means over the seeds.
pub(crate) fn draw(
    path: &Path,
    setting: &Setting,
    contenders: &[Contender],
    runs: &[Vec<Run>],
    lr: f64,
    switch: u64,
) -> Result<(), Box<dyn Error>> {
    let title = format!(
        "Handwritten digits: network 64-128-10 in {}, learning rate {lr}, seeds: {}",
        setting.dtype.name(),
        runs[0].len(),
    );
    let mean = |value: fn(&Run, usize) -> f64| mean_curves(runs, setting.steps_per_epoch(), value);
    let losses = mean(|run, epoch| run.losses[epoch]);
    let errors = mean(|run, epoch| 100.0 * (1.0 - run.accuracies[epoch]));
    let panels = [
        Panel::logarithmic("training loss", &losses, 1e-6),
        Panel::logarithmic("test error, %", &errors, 0.05),
        Panel::linear(
            "α, the weight of the inverse branch (dotted: the end of the switch)",
            alpha_curves(contenders, setting.steps()),
        ),
    ];
    picture::write(path, SIZE, |area| {
        let (header, body) = area.split_vertically(HEADER);
        draw_header(&header, &title, contenders)?;
        for (index, (panel, area)) in panels.iter().zip(&body.split_by_breakpoints([0_i32; 0], BREAKS)).enumerate() {
            let steps_below = index + 1 == panels.len();
            panel.draw(area, setting.steps(), switch, steps_below)?;
        }
        Ok(())
    })
}

/// The title, and below it the contenders with their lines.
fn draw_header(area: &Area<'_>, title: &str, contenders: &[Contender]) -> Result<(), Box<dyn Error>> {
    area.draw(&Text::new(title, (60, 68), text(56, HPos::Left)))?;
    for (index, contender) in contenders.iter().enumerate() {
        let (x, y) = (60 + index as i32 % 4 * 576, 156 + index as i32 / 4 * 64);
        let line = vec![(x, y), (x + 88, y)];
        match line_of(index) {
            Line::Solid(style) => area.draw(&PathElement::new(line, style))?,
            Line::Dashed(style) => area.draw(&DashedPathElement::new(line, 16, 12, style))?,
        }
        area.draw(&Text::new(contender.name, (x + 112, y), text(42, HPos::Left)))?;
    }
    Ok(())
}

fn text(size: i32, horizontal: HPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK).pos(Pos::new(horizontal, VPos::Center))
}

enum Line {
    Solid(ShapeStyle),
    Dashed(ShapeStyle),
}

fn line_of(contender: usize) -> Line {
    let (colour, width) = LINES[contender];
    let style = colour.stroke_width(width);
    if contender == WARM_UP { Line::Dashed(style) } else { Line::Solid(style) }
}

/// For each contender, the mean of `value` over its runs after each epoch.
fn mean_curves(runs: &[Vec<Run>], steps_per_epoch: u64, value: fn(&Run, usize) -> f64) -> Vec<Curve> {
    let mean = |runs: &[Run], epoch| runs.iter().map(|run| value(run, epoch)).sum::<f64>() / runs.len() as f64;
    let curve = |runs: &Vec<Run>| {
        let epochs = 0..runs[0].losses.len();
        epochs.map(|epoch| ((epoch as u64 * steps_per_epoch) as f64, mean(runs, epoch))).collect()
    };
    runs.iter().map(curve).collect()
}

/// α of each contender but the last, whose α is Adam's.
fn alpha_curves(contenders: &[Contender], steps: u64) -> Vec<Curve> {
    let curve = |contender: &Contender| (1..=steps).map(|t| (t as f64, contender.config.schedule.alpha(t))).collect();
    contenders[..WARM_UP].iter().map(curve).collect()
}

/// One chart; all of them share the steps as their horizontal axis.
struct Panel {
    title: &'static str,
    range: Range<f64>,
    ticks: Vec<f64>,
    label: fn(&f64) -> String,
    curves: Vec<Curve>,
}

impl Panel {
    fn linear(title: &'static str, curves: Vec<Curve>) -> Self {
        Self { title, range: -0.04..1.04, ticks: vec![0.0, 0.25, 0.5, 0.75, 1.0], label: |y| format!("{y}"), curves }
    }

    /// A chart of the decimal logarithms; what is below `floor` is drawn there, and NaN is left
    /// out.
    fn logarithmic(title: &'static str, curves: &[Curve], floor: f64) -> Self {
        let logarithms = |curve: &Curve| {
            let numbers = curve.iter().filter(|(_, y)| !y.is_nan());
            numbers.map(|&(x, y)| (x, y.clamp(floor, 1e12).log10())).collect()
        };
        let curves: Vec<Curve> = curves.iter().map(logarithms).collect();
        let heights = || curves.iter().flatten().map(|&(_, y)| y);
        let (low, high) = (heights().fold(f64::INFINITY, f64::min), heights().fold(f64::NEG_INFINITY, f64::max));
        let range = if low <= high { low - 0.1..high + 0.1 } else { 0.0..1.0 };
        Self { title, ticks: decades(&range), range, label: |y| power_of_ten(*y), curves }
    }

    fn draw(&self, area: &Area<'_>, steps: u64, switch: u64, steps_below: bool) -> Result<(), Box<dyn Error>> {
        let mut chart = ChartBuilder::on(area)
            .margin_left(20)
            .margin_right(60)
            .margin_top(96)
            .margin_bottom(10)
            .set_label_area_size(LabelAreaPosition::Left, 170)
            .set_label_area_size(LabelAreaPosition::Bottom, if steps_below { 120 } else { 20 })
            .build_cartesian_2d(0.0..steps as f64, Heights(self.range.clone(), self.ticks.clone()))?;
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(2))
            .axis_style(INK.stroke_width(2))
            .label_style(text(40, HPos::Right));
        let x_label = |x: &f64| if steps_below { format!("{x}") } else { String::new() };
        mesh.x_labels(13).x_label_formatter(&x_label);
        mesh.y_labels(self.ticks.len()).y_label_formatter(&self.label);
        if steps_below {
            mesh.x_desc("step").axis_desc_style(text(44, HPos::Center));
        }
        mesh.draw()?;
        let end = [(switch as f64, self.range.start), (switch as f64, self.range.end)];
        chart.draw_series(DashedLineSeries::new(end, 6, 10, INK.stroke_width(2)))?;
        for (index, curve) in self.curves.iter().enumerate() {
            let curve = curve.iter().copied();
            match line_of(index) {
                Line::Solid(style) => drop(chart.draw_series(LineSeries::new(curve, style))?),
                Line::Dashed(style) => drop(chart.draw_series(DashedLineSeries::new(curve, 16, 12, style))?),
            }
        }
        area.draw(&Text::new(self.title, (60, 48), text(44, HPos::Left)))?;
        Ok(())
    }
}

/// A vertical axis with given ticks.
struct Heights(Range<f64>, Vec<f64>);

impl Ranged for Heights {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.0.clone()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.1.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.0.clone()
    }
}

/// The logarithms at which a range of logarithms gets its ticks: 1, 2 and 5 of each decade, more of
/// a short range, fewer of a long one.
fn decades(range: &Range<f64>) -> Vec<f64> {
    let (first, last) = (range.start.floor() as i32, range.end.ceil() as i32);
    let digits: &[f64] = match range.end - range.start {
        length if length < 1.0 => &[1.0, 2.0, 3.0, 4.0, 5.0, 7.0],
        length if length < 3.0 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let every = (last - first) as usize / 8 + 1;
    let ticks =
        (first..=last).step_by(every).flat_map(|decade| digits.iter().map(move |x| x.log10() + f64::from(decade)));
    ticks.filter(|tick| range.contains(tick)).collect()
}

/// The number with this logarithm, in one digit.
fn power_of_ten(logarithm: f64) -> String {
    let number = 10_f64.powf(logarithm);
    let decimals = (-logarithm - 1e-9).ceil().max(0.0) as usize;
    if logarithm > -4.5 && logarithm < 4.5 { format!("{number:.decimals$}") } else { format!("{number:.0e}") }
}
