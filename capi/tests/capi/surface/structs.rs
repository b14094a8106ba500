//! Structs in the arena, filled as the bytes decide.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;

use dualadam_capi::*;

use super::input::Input;
use super::{Kind, MOST, MOST_ELEMENTS, Surface};

impl Surface {
    /// An array in the arena and its length. Its structs say mostly the same size, which `make` is
    /// given.
    fn put_array<T: Copy>(
        &mut self,
        input: &mut Input<'_>,
        count: impl Fn(&mut Input<'_>) -> usize,
        mut make: impl FnMut(&Self, &mut Input<'_>, usize) -> T,
    ) -> (*const T, usize) {
        let (place, size) = (self.arena.place(input), input.struct_size::<T>());
        let count = count(input);
        let structs: Vec<_> = (0..count.min(MOST))
            .map(|_| {
                let size = if input.one_in(32) { input.size(size) } else { size };
                make(self, input, size)
            })
            .collect();
        self.arena.put(place, &structs, size);
        (place, count)
    }

    fn config(input: &mut Input<'_>) -> dualadam_config {
        if input.one_in(2) {
            return Self::usual_config(input);
        }
        let weight_decay_kind = input.number(&[0, 0, 1, 2, 3]);
        dualadam_config {
            size: input.struct_size::<dualadam_config>(),
            lr: input.real(&[1e-3, 0.0, 0.1]),
            beta1: input.real(&[0.9, 0.0]),
            beta2: input.real(&[0.999, 0.0]),
            eps: input.real(&[1e-8, 1e-2]),
            weight_decay: if weight_decay_kind == 0 && !input.one_in(8) { 0.0 } else { input.real(&[0.1, 0.0]) },
            weight_decay_kind,
            inverse_term: input.number(&[0, 1]),
            maximize: input.number(&[0, 1]),
            schedule: input.number(&[0, 1, 2, 3]),
            switching_rate: input.real(&[8e-5, 0.01, 0.0, 1.0]),
            base: input.real(&[0.5, 1.0, 0.0]),
            period: input.step(),
            cutoff: input.real(&[0.0, 0.1, 1.0]),
            switching_step: input.step(),
        }
    }

    /// One that is valid, as far as its lr is.
    fn usual_config(input: &mut Input<'_>) -> dualadam_config {
        // SAFETY: all fields are numbers, so any bits are a value.
        let zero: dualadam_config = unsafe { std::mem::zeroed() };
        let (size, lr) = (size_of::<dualadam_config>(), input.real(&[1e-3, 0.0, 0.1]));
        dualadam_config { size, lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, switching_rate: 0.01, ..zero }
    }

    /// A config in the arena.
    pub(super) fn put_config(&mut self, input: &mut Input<'_>) -> *const dualadam_config {
        let (place, config) = (self.arena.place(input), Self::config(input));
        self.arena.put(place, &[config], 0);
        place
    }

    fn coeffs(input: &mut Input<'_>) -> dualadam_coeffs {
        let mut next = || f32::from_bits(input.u32());
        dualadam_coeffs {
            size: 0,
            one_minus_beta1: next(),
            one_minus_beta2: next(),
            inv_sqrt_bc2: next(),
            eps: next(),
            inverse_eps: next(),
            inverse_scale: next(),
            adam_scale: next(),
            decay: next(),
            l2: next(),
            grad_scale: next(),
        }
    }

    /// Coefficients in the arena: one struct, or an array and its length.
    pub(super) fn put_coeffs(&mut self, input: &mut Input<'_>, array: bool) -> (*const dualadam_coeffs, usize) {
        let count = |input: &mut Input<'_>| if array { input.count() } else { 1 };
        self.put_array(input, count, |_, input, size| dualadam_coeffs { size, ..Self::coeffs(input) })
    }

    /// A tensor's buffers: in the arena, or the moments of a state, or on the device.
    fn tensor(&self, input: &mut Input<'_>, on_device: bool) -> dualadam_tensor {
        let mut len = match input.byte() % 16 {
            14 => [u64::MAX, 1 << 62, 1 << 63, u64::MAX / 2, 1 << 61 | 1 << 62][input.byte() % 5],
            15 => 0,
            byte => (byte * input.byte()) as u64 % (MOST_ELEMENTS + 1),
        };
        let buffer = |input: &mut Input<'_>| -> *mut c_void {
            if on_device { self.device.place(input) } else { self.arena.place(input) }
        };
        let (mut exp_avg, mut exp_avg_sq) = (buffer(input), buffer(input));
        if !on_device && input.one_in(4) {
            let mut values = MaybeUninit::<dualadam_tensor_state>::uninit();
            let (handle, size) = (self.handle(input, Kind::State), size_of::<dualadam_tensor_state>());
            // SAFETY: the struct has that size; it is only used if it was filled.
            unsafe {
                if dualadam_state_tensor(handle, input.byte() % MOST, values.as_mut_ptr(), size) == DUALADAM_STATUS_OK {
                    let values = values.assume_init();
                    (exp_avg, exp_avg_sq) = (values.exp_avg.cast(), values.exp_avg_sq.cast());
                    len = len.min(values.len);
                }
            }
        }
        let master_dtype = input.number(&[0, 0, 0, 1, 1, 2]);
        dualadam_tensor {
            size: 0,
            param: buffer(input),
            grad: buffer(input),
            exp_avg,
            exp_avg_sq,
            master: if master_dtype == 0 && !input.one_in(16) { ptr::null_mut() } else { buffer(input) },
            len,
            param_dtype: input.number(if master_dtype == 1 { &[2, 2, 3, 3, 1] } else { &[1, 1, 1, 2, 3] }),
            grad_dtype: input.number(&[1, 1, 1, 2, 3]),
            master_dtype,
            coeffs_index: input.number(&[0, 0, 0, 0, 1, 2]),
        }
    }

    /// Tensors in the arena: one struct, or an array and its length.
    pub(super) fn put_tensors(
        &mut self,
        input: &mut Input<'_>,
        array: bool,
        on_device: bool,
    ) -> (*const dualadam_tensor, usize) {
        let count = |input: &mut Input<'_>| if array { input.count() } else { 1 };
        self.put_array(input, count, |this, input, size| dualadam_tensor { size, ..this.tensor(input, on_device) })
    }

    pub(super) fn put_specs(&mut self, input: &mut Input<'_>) -> (*const dualadam_tensor_spec, usize) {
        self.put_array(
            input,
            |input| input.count(),
            |_, input, size| dualadam_tensor_spec {
                size,
                len: if input.one_in(32) { (1 << 50) | input.u64() } else { input.byte() as u64 },
                group: input.number(&[0, 0, 0, 1]),
                has_master: input.number(&[0, 0, 1]),
            },
        )
    }

    pub(super) fn put_configs(&mut self, input: &mut Input<'_>) -> (*const dualadam_config, usize) {
        self.put_array(input, |input| input.count(), |_, input, size| dualadam_config { size, ..Self::config(input) })
    }

    /// An address on the device, often null.
    fn device_place_or_null<T>(&self, input: &mut Input<'_>) -> *mut T {
        if input.one_in(3) { self.device.place(input) } else { ptr::null_mut() }
    }

    pub(super) fn put_control_sets(&mut self, input: &mut Input<'_>) -> (*const dualadam_cuda_control_set, usize) {
        self.put_array(
            input,
            |input| input.control_count(),
            |this, input, size| dualadam_cuda_control_set {
                size,
                group: input.number(&[0, 0, 0, 1]) as usize,
                step: this.device_place_or_null(input),
            },
        )
    }

    /// Must be put after all else, since calls follow the pointers of groups.
    pub(super) fn put_control_groups(&mut self, input: &mut Input<'_>) -> (*const dualadam_cuda_control_group, usize) {
        let count = input.control_count();
        let mut configs = [ptr::null(); MOST];
        configs[..count.min(MOST)].fill_with(|| self.put_config(input));
        let mut configs = configs.into_iter();
        let make = |this: &Self, input: &mut Input<'_>, size| {
            let (lr_f32, lr_f64) = match input.byte() % 8 {
                0 => (this.device.place(input), ptr::null_mut()),
                1 => (ptr::null_mut(), this.device.place(input)),
                2 => (this.device.place(input), this.device.place(input)),
                _ => (ptr::null_mut(), ptr::null_mut()),
            };
            dualadam_cuda_control_group { size, config: configs.next().unwrap(), lr_f32, lr_f64 }
        };
        self.put_array(input, |_| count, make)
    }

    pub(super) fn put_scalars(&mut self, input: &mut Input<'_>) -> *const dualadam_cuda_scalars {
        let place = self.arena.place(input);
        let scalars = dualadam_cuda_scalars {
            size: input.struct_size::<dualadam_cuda_scalars>(),
            loss_scale: self.device_place_or_null(input),
            clip_factor: self.device_place_or_null(input),
            found_inf: self.device_place_or_null(input),
        };
        self.arena.put(place, &[scalars], 0);
        place
    }
}
