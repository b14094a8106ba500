// The coefficients of a step, among the commands, where the device can have them there.

var<immediate> coeffs: StepCoeffs;
