//! Which shapes are timed with which variants, alignments and jobs. Not every combination is timed:
//! each group of cases answers one question.

use dualadam::Variant;

use crate::values::named;
use crate::{Job, Shape, shapes};

use Job::{Adam, Captured, Controlled, Copy, Dual, Flat, MostSets, SetEach, Triad, Unfused, UnrolledCopy};

/// Jobs that are timed in turns over one set of buffers.
pub(crate) struct Case {
    pub(crate) shape: Shape,
    pub(crate) variant: Variant,
    pub(crate) alignment: Alignment,
    pub(crate) jobs: Vec<Job>,
    /// Whether three rows of ten have never had a gradient: their moments are 0.
    pub(crate) has_untouched_rows: bool,
}

impl Case {
    /// A case over the aligned f32 buffers of a shape, without jobs.
    pub(crate) fn buffers(shape: &Shape) -> Self {
        Self {
            shape: shape.clone(),
            variant: named("f32_f32"),
            alignment: ALIGNED,
            jobs: vec![],
            has_untouched_rows: false,
        }
    }
}

/// How many elements after an aligned address each buffer begins, in the order of the roles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Alignment {
    pub(crate) name: &'static str,
    pub(crate) offsets: [usize; 5],
}

const ALIGNED: Alignment = Alignment { name: "aligned", offsets: [0; 5] };

/// First all offsets alike, so that one head aligns all buffers; then the caller's buffers differ
/// from the moments, then one stream from the others, then all mixed.
const MISALIGNED: [Alignment; 6] = [
    Alignment { name: "all off by one", offsets: [1; 5] },
    Alignment { name: "param, grad, master off by two", offsets: [2, 2, 0, 0, 2] },
    Alignment { name: "param, grad, master off by one", offsets: [1, 1, 0, 0, 1] },
    Alignment { name: "grad off by one", offsets: [0, 1, 0, 0, 0] },
    Alignment { name: "exp_avg_sq off by one", offsets: [0, 0, 0, 1, 0] },
    Alignment { name: "all differ", offsets: [1, 2, 0, 3, 1] },
];

/// The variants of plain, of 16-bit and of mixed training; the others are timed at a few shapes.
const MAIN: [&str; 3] = ["f32_f32", "bf16_bf16", "bf16_bf16_master"];
/// Where all variants are timed: a flat shape of the size of a large layer, one that fills the
/// device, and a list.
const SHAPES_OF_ALL_VARIANTS: [&str; 3] = ["2^24", "2^28", "gpt2"];
const SHAPE_OF_ALIGNMENTS: &str = "2^28";

/// The most informative shapes, in the order in which they are timed when time is short.
const CORE: [&str; 4] = ["2^28", "gpt2", "10,000 x 1,000", "2^24"];

/// The most informative cases.
pub(crate) fn core(quick: bool) -> Vec<Case> {
    let shapes = shapes::all();
    let shape = |name: &str| shapes.iter().find(|shape| shape.name == name).expect("the shape is there");
    let main = || MAIN.map(named).into_iter();
    let case = |shape: &Shape, variant, has_untouched_rows| {
        let jobs: &[Job] = match shape.lens.len() {
            1 => &[Copy, UnrolledCopy, Triad, Dual, Adam],
            _ => &[Copy, UnrolledCopy, Triad, Flat, Dual, Adam],
        };
        Case { variant, jobs: jobs.to_vec(), has_untouched_rows, ..Case::buffers(shape) }
    };
    let mut cases: Vec<_> =
        CORE.iter().flat_map(|name| main().map(|variant| case(shape(name), variant, false))).collect();
    let mut untouched = case(shape(SHAPE_OF_ALIGNMENTS), named("f32_f32"), true);
    untouched.shape.name += ", 30% untouched";
    cases.insert(main().count(), untouched);
    if quick {
        cases.iter_mut().for_each(|case| case.shape = case.shape.clone().cut());
    }
    cases
}

/// The cases of the sweep of constants, with one job each.
pub(crate) fn tuned(quick: bool) -> Vec<Case> {
    let is_swept = |case: &Case| {
        let (name, variant) = (case.shape.name.trim_end_matches(", cut"), case.variant.name());
        ["2^28", "gpt2", "10,000 x 1,000"].contains(&name) && ["f32_f32", "bf16_bf16"].contains(&variant)
    };
    let mut cases: Vec<_> = core(quick).into_iter().filter(is_swept).collect();
    cases.iter_mut().for_each(|case| case.jobs = vec![Dual]);
    cases
}

/// All cases. With `quick` some of each kind, over shapes that an interpreter can run.
pub(crate) fn all(quick: bool) -> Vec<Case> {
    let shapes = shapes::all();
    let mut cases: Vec<_> =
        shapes.iter().flat_map(|shape| Variant::all().flat_map(|variant| of(shape, variant))).collect();
    if quick {
        // Once cut, most flat shapes are alike, and so are most lists.
        cases.retain(|case| match &case.shape {
            Shape { name, lens } if lens.len() == 1 => name == "2^10" || name == SHAPE_OF_ALIGNMENTS,
            Shape { name, .. } => name == "gpt2",
        });
        cases.iter_mut().for_each(|case| case.shape = case.shape.clone().cut());
    }
    cases
}

/// The cases of a shape with a variant.
fn of(shape: &Shape, variant: Variant) -> Vec<Case> {
    let is_main = MAIN.contains(&variant.name());
    let mut cases = vec![];
    let case = |alignment, jobs: &[&[Job]]| Case { variant, alignment, jobs: jobs.concat(), ..Case::buffers(shape) };
    if is_main || SHAPES_OF_ALL_VARIANTS.contains(&shape.name.as_str()) {
        let (all, only_f32): (&[Job], &[Job]) = match shape.lens.len() {
            1 => (&[Copy, UnrolledCopy, Triad, Dual, Adam], &[Unfused, Controlled, Captured]),
            _ => (&[Copy, UnrolledCopy, Triad, Flat, Dual, Adam], &[MostSets, SetEach, Controlled, Captured]),
        };
        cases.push(case(ALIGNED, &[all, if variant.name() == "f32_f32" { only_f32 } else { &[] }]));
    }
    if is_main && shape.name == SHAPE_OF_ALIGNMENTS {
        cases.extend(MISALIGNED.map(|alignment| case(alignment, &[&[Copy, UnrolledCopy, Triad, Dual]])));
    }
    cases
}
