// The coefficients of a step, as immediate data among the commands. Needs a feature of the device.

var<immediate> coeffs: StepCoeffs;
