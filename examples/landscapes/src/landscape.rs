//! A landscape of two parameters with a sharp minimum on the left and a flat, deeper one on the
//! right, in a bowl:
//!
//! ```text
//! f(θ) = 0.05·|θ|² - exp(-|θ - (-1.2, 0)|² / (2·0.15²)) - 1.2·exp(-|θ - (1.2, 0)|² / (2·0.8²))
//! ```

/// Coordinates are kept within ± this.
pub(crate) const BOX: f32 = 3.0;

const BOWL: f64 = 0.05;
const WELLS: [Well; 2] = [SHARP, FLAT];
const SHARP: Well = Well { x: -1.2, depth: 1.0, width: 0.15 };
const FLAT: Well = Well { x: 1.2, depth: 1.2, width: 0.8 };

/// A Gaussian hole, centred at (x, 0).
struct Well {
    x: f64,
    depth: f64,
    width: f64,
}

impl Well {
    fn squared_distance(&self, [x, y]: [f32; 2]) -> f64 {
        (f64::from(x) - self.x).powi(2) + f64::from(y).powi(2)
    }

    /// By how much it lowers the landscape there.
    fn at(&self, point: [f32; 2]) -> f64 {
        self.depth * (-self.squared_distance(point) / (2.0 * self.width.powi(2))).exp()
    }
}

pub(crate) fn loss(point: [f32; 2]) -> f64 {
    let squared_radius: f64 = point.iter().map(|&x| f64::from(x).powi(2)).sum();
    BOWL * squared_radius - WELLS.iter().map(|well| well.at(point)).sum::<f64>()
}

pub(crate) fn grad(point: [f32; 2]) -> [f32; 2] {
    let mut grad = point.map(|x| 2.0 * BOWL * f64::from(x));
    for well in &WELLS {
        let slope = well.at(point) / well.width.powi(2);
        grad[0] += slope * (f64::from(point[0]) - well.x);
        grad[1] += slope * f64::from(point[1]);
    }
    grad.map(|slope| slope as f32)
}

/// Whether a point lies in the sharp well: within three of its widths.
pub(crate) fn is_in_sharp_well(point: [f32; 2]) -> bool {
    SHARP.squared_distance(point) < (3.0 * SHARP.width).powi(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        for [x, y] in [[0.3, -0.4], [-1.1, 0.05], [-1.3, -0.1], [1.5, 0.7], [2.9, -2.9]] {
            let h = 2.0_f32.powi(-10);
            let slope = |ahead: f64, behind: f64| (ahead - behind) / (2.0 * f64::from(h));
            let expected = [slope(loss([x + h, y]), loss([x - h, y])), slope(loss([x, y + h]), loss([x, y - h]))];
            for (found, expected) in grad([x, y]).into_iter().zip(expected) {
                // The third derivative, at most some 300 in the sharp well, times h²/6.
                assert!((f64::from(found) - expected).abs() < 1e-4, "{found} {expected} at {x}, {y}");
            }
        }
    }

    #[test]
    fn the_wells_are_minima_and_the_flat_one_is_deeper() {
        assert!(is_in_sharp_well([-1.2, 0.0]) && !is_in_sharp_well([1.2, 0.0]));
        assert!(loss([1.1, 0.0]) < loss([-1.2, 0.0]) && loss([-1.2, 0.0]) < loss([-1.2, 0.3]));
    }
}
