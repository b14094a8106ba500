// The coefficients of a step, in immediates among the commands, on devices that have them.

var<immediate> coeffs: StepCoeffs;
