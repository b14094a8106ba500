//! The picture: the landscape in bands of equal loss, and the ways of some starts on it.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::landscape::{BOX, is_in_sharp_well, loss};
use crate::picture::{self, FONT};
use crate::{Run, percent};

const SIZE: (u32, u32) = (1240, 700);
const TITLE: u32 = 84;
const MARGIN: u32 = 10;
/// So many of the starts are drawn.
const DRAWN: usize = 120;
const INK: RGBColor = RGBColor(40, 40, 40);
/// The colours of ways that end in the sharp and in the flat well: those of Okabe and Ito, which
/// the colour-blind can tell apart.
const SHARP: RGBColor = RGBColor(213, 94, 0);
const FLAT: RGBColor = RGBColor(0, 114, 178);
/// The lowest loss that is drawn, and the highest.
const LOSSES: (f64, f64) = (-1.2, 0.9);
const BANDS: f64 = 14.0;

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Draws one panel for each run.
pub(crate) fn draw(path: &Path, runs: [&Run; 2]) -> Result<(), Box<dyn Error>> {
    picture::write(path, SIZE, |area| {
        for (run, panel) in runs.iter().zip(area.split_evenly((1, 2))) {
            draw_panel(&panel, run)?;
        }
        Ok(())
    })
}

fn draw_panel(area: &Area<'_>, run: &Run) -> Result<(), Box<dyn Error>> {
    let title = format!("{}: {} end in the sharp minimum", run.name, percent(run.in_sharp_well()));
    let style = (FONT, 32).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new(title, (MARGIN as i32, TITLE as i32 / 2), style))?;
    let (_, map) = area.split_vertically(TITLE);
    let map = map.margin(0, MARGIN, MARGIN, MARGIN);
    let bounds = -f64::from(BOX)..f64::from(BOX);
    let mut chart = ChartBuilder::on(&map).build_cartesian_2d(bounds.clone(), bounds)?;
    let plane = chart.plotting_area();
    let (width, height) = plane.dim_in_pixel();
    for (column, row) in (0..width).flat_map(|column| (0..height).map(move |row| (column, row))) {
        let at = |pixel: u32, pixels: u32| BOX * (2.0 * (pixel as f32 + 0.5) / pixels as f32 - 1.0);
        map.draw_pixel((column as i32, row as i32), &shade(loss([at(column, width), -at(row, height)])))?;
    }
    // The few that end in the sharp well above the others.
    let mut ways: Vec<_> = run.ways.iter().take(DRAWN).filter_map(|way| way.last().map(|&end| (way, end))).collect();
    ways.sort_by_key(|&(_, end)| is_in_sharp_well(end));
    for (way, end) in ways {
        let colour = if is_in_sharp_well(end) { SHARP } else { FLAT };
        let points = || way.iter().map(|&[x, y]| (f64::from(x), f64::from(y)));
        // Segment by segment: the joints of one thick line would stick out far at sharp turns.
        let segments = points().zip(points().skip(1));
        let style = ShapeStyle::from(&colour);
        chart.draw_series(segments.map(|(from, to)| PathElement::new([from, to], style)))?;
        chart.draw_series(points().take(1).map(|start| Circle::new(start, 3, colour.filled())))?;
    }
    Ok(())
}

/// The colour of a loss: dark is low.
fn shade(loss: f64) -> RGBColor {
    let (low, high) = LOSSES;
    let height = ((loss - low) / (high - low)).clamp(0.0, 1.0);
    let band = (height * BANDS).floor() / BANDS;
    let channel = |dark: f64, light: f64| (dark + (light - dark) * band.sqrt()) as u8;
    RGBColor(channel(120.0, 250.0), channel(125.0, 250.0), channel(140.0, 250.0))
}
