// The entry points for the last one to three elements, which are not a whole quad. They use the
// same buffers as arrays of parts.

fn step_tail(dual: bool) {
    let len = arrayLength(&$counted_parts);
    let at = len / 4;
    let rest = len % 4;
    let x = Elements(load_updated_tail(at, rest), load_exp_avg_tail(at, rest), load_exp_avg_sq_tail(at, rest));
    let stepped = update(dual, coeffs, load_grad_tail(at, rest), x);
    store_updated_tail(at, rest, stepped.p);
    store_exp_avg_tail(at, rest, stepped.m);
    store_exp_avg_sq_tail(at, rest, stepped.v);
}

@compute @workgroup_size(1)
fn dual_adam_tail() {
    step_tail(true);
}

@compute @workgroup_size(1)
fn adam_tail() {
    step_tail(false);
}
