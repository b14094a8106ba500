// The coefficients of a step, in a uniform buffer.

@group(1) @binding(0) var<uniform> coeffs: StepCoeffs;
