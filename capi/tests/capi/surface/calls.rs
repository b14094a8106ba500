//! One call of one function, with arguments that the bytes decide.

use std::array;

use dualadam_capi::*;

use super::arena::SLACK;
use super::input::Input;
use super::{Kind, MOST, Surface};

impl Surface {
    #[expect(clippy::too_many_lines, reason = "a line or two for each function of the library")]
    pub(super) fn call(&mut self, input: &mut Input<'_>) {
        self.calls += 1;
        self.arena.remember();
        let which = input.byte() % 96;
        // SAFETY: structs and results are in the arena, with room behind them; buffers that can
        // pass the checks are in it as well, or in a live state, or on the device; paths are null
        // or C strings.
        let status = unsafe {
            match which {
                0 | 1 => dualadam_config_init(self.arena.place(input), input.struct_size::<dualadam_config>()),
                2 => dualadam_tensor_init(self.arena.place(input), input.struct_size::<dualadam_tensor>()),
                3 => dualadam_tensor_spec_init(self.arena.place(input), input.struct_size::<dualadam_tensor_spec>()),
                4 | 5 => dualadam_config_validate(self.put_config(input)),
                6 => dualadam_config_alpha(self.put_config(input), input.step(), self.arena.place(input)),
                7 => {
                    let (config, step) = (self.put_config(input), self.arena.place(input));
                    dualadam_config_first_adam_step(config, step, self.arena.place(input))
                }
                8..=11 => {
                    let (config, place) = (self.put_config(input), self.arena.place(input));
                    let (step, multiplier) = (input.step(), input.real(&[1.0, 0.5, 0.0]));
                    dualadam_config_coeffs(config, step, multiplier, place, input.struct_size::<dualadam_coeffs>())
                }
                12..=19 => dualadam_cpu_step(self.put_tensors(input, false, false).0, self.put_coeffs(input, false).0),
                20..=27 => {
                    let (tensors, tensor_count) = self.put_tensors(input, true, false);
                    let (coeffs, coeffs_count) = self.put_coeffs(input, true);
                    dualadam_cpu_step_list(tensors, tensor_count, coeffs, coeffs_count)
                }
                28..=31 => {
                    let (groups, group_count) = self.put_configs(input);
                    let (tensors, tensor_count) = self.put_specs(input);
                    let place = self.arena.place(input);
                    let status = dualadam_state_new(groups, group_count, tensors, tensor_count, place);
                    self.given_out(Kind::State, place, status)
                }
                32 => {
                    let place = self.arena.place(input);
                    if input.one_in(2) {
                        self.damage(input);
                    }
                    self.given_out(Kind::State, place, dualadam_state_load(self.path(input), place))
                }
                33 => dualadam_state_save(self.handle(input, Kind::State), self.path(input)),
                34 | 35 => self.free(input, Kind::State),
                36 => {
                    let (handle, groups) = (self.handle(input, Kind::State), self.arena.place(input));
                    dualadam_state_counts(handle, groups, self.arena.place(input))
                }
                37 => {
                    let (handle, group, place) = self.numbered(input, Kind::State);
                    dualadam_state_config(handle, group, place, input.struct_size::<dualadam_config>())
                }
                38 => {
                    dualadam_state_set_config(self.handle(input, Kind::State), input.position(), self.put_config(input))
                }
                39 | 40 => {
                    let (handle, tensor, place) = self.numbered(input, Kind::State);
                    dualadam_state_tensor(handle, tensor, place, input.struct_size::<dualadam_tensor_state>())
                }
                41 | 42 => {
                    let (handle, tensor) = (self.handle(input, Kind::State), input.position());
                    dualadam_state_set_step(handle, tensor, input.step(), input.number(&[0, 0, 1]))
                }
                43 => {
                    // Not device 1, whose kernels could be launched on memory of device 0.
                    let device = if input.one_in(4) { input.u64().max(2) as usize } else { 0 };
                    let place = self.arena.place(input);
                    self.given_out(Kind::Kernels, place, dualadam_cuda_kernels_new(device, place))
                }
                44 => {
                    let place = self.arena.place(input);
                    self.given_out(Kind::Kernels, place, dualadam_cuda_kernels_in_current_context(place))
                }
                45 => self.free(input, Kind::Kernels),
                46..=49 => {
                    let (handle, stream) = (self.handle(input, Kind::Kernels), self.device.stream(input));
                    dualadam_cuda_step(
                        handle,
                        self.put_tensors(input, false, true).0,
                        self.put_coeffs(input, false).0,
                        stream,
                    )
                }
                50 | 51 => {
                    let handle = self.handle(input, Kind::Kernels);
                    let (tensors, count) = self.put_tensors(input, true, true);
                    let place = self.arena.place(input);
                    self.given_out(Kind::List, place, dualadam_cuda_list_new(handle, tensors, count, place))
                }
                52 => {
                    let handle = self.handle(input, Kind::List);
                    let (tensors, count) = self.put_tensors(input, true, true);
                    dualadam_cuda_list_update(handle, tensors, count)
                }
                53..=56 => {
                    let (handle, stream) = (self.handle(input, Kind::List), self.device.stream(input));
                    let (coeffs, count) = self.put_coeffs(input, true);
                    dualadam_cuda_list_step(handle, coeffs, count, stream)
                }
                57 => self.free(input, Kind::List),
                58 | 59 => {
                    let (place, len) = (self.arena.place(input), input.u32() as usize % SLACK);
                    // This leaves the last error as it is, so the checks after the call still apply
                    // to it.
                    dualadam_last_error(place, len, self.arena.place(input))
                }
                60 => {
                    let (place, size) = (self.arena.place::<u64>(input), input.size(32));
                    match input.byte() % 3 {
                        0 => dualadam_cuda_control_group_init(place.cast(), size),
                        1 => dualadam_cuda_control_set_init(place.cast(), size),
                        _ => dualadam_cuda_scalars_init(place.cast(), size),
                    }
                }
                61..=66 => {
                    let (handle, (sets, set_count)) = (self.handle(input, Kind::Kernels), self.put_control_sets(input));
                    let (groups, group_count) = self.put_control_groups(input);
                    let place = self.arena.place(input);
                    let status = dualadam_cuda_control_new(handle, groups, group_count, sets, set_count, place);
                    self.given_out(Kind::Control, place, status)
                }
                67 => self.free(input, Kind::Control),
                68 => {
                    let (handle, group, place) = self.numbered(input, Kind::Control);
                    dualadam_cuda_control_config(handle, group, place, input.struct_size::<dualadam_config>())
                }
                69 | 70 => {
                    let (handle, group) = (self.handle(input, Kind::Control), input.position());
                    let lr = input.real(&[1e-3, 0.0, 0.1]);
                    dualadam_cuda_control_set_lr(handle, group, lr, self.device.stream(input))
                }
                71 => {
                    let (handle, group, config) =
                        (self.handle(input, Kind::Control), input.position(), self.put_config(input));
                    dualadam_cuda_control_set_config(handle, group, config, self.device.stream(input))
                }
                72 | 73 => {
                    let (handle, place, count) = self.control_array(input);
                    dualadam_cuda_control_steps(handle, place, count, self.device.stream(input))
                }
                74 | 75 => {
                    let (handle, place, count) = self.control_array(input);
                    self.arena.put(place, &array::from_fn::<_, MOST, _>(|_| input.step()), 8);
                    dualadam_cuda_control_set_steps(handle, place, count, self.device.stream(input))
                }
                76 | 77 => {
                    let (handle, place, count) = self.control_array(input);
                    let size = input.struct_size::<dualadam_cuda_set_report>();
                    dualadam_cuda_control_report(handle, place, size, count, self.device.stream(input))
                }
                78 => {
                    let (handle, place, count) = self.control_array(input);
                    let size = input.struct_size::<dualadam_coeffs>();
                    dualadam_cuda_control_coeffs(handle, place, size, count, self.device.stream(input))
                }
                79..=88 => {
                    let (list, control) = (self.handle(input, Kind::List), self.handle(input, Kind::Control));
                    let scalars = self.put_scalars(input);
                    dualadam_cuda_list_step_controlled(list, control, scalars, self.device.stream(input))
                }
                89 | 90 => {
                    let handle = self.handle(input, Kind::Kernels);
                    dualadam_cuda_kernels_prepare(handle, self.put_tensors(input, false, true).0)
                }
                91 => dualadam_state_resume(self.handle(input, Kind::State), self.path(input)),
                92 => dualadam_cpu_sync_master(self.put_tensors(input, false, false).0),
                93 => {
                    let (handle, stream) = (self.handle(input, Kind::Kernels), self.device.stream(input));
                    dualadam_cuda_sync_master(handle, self.put_tensors(input, false, true).0, stream)
                }
                _ => {
                    assert!(!dualadam_status_name(input.u32() as i32).is_null() && !dualadam_version().is_null());
                    DUALADAM_STATUS_OK
                }
            }
        };
        self.check(which, status);
    }

    /// A handle, the position of a part of its object, and a pointer for the result.
    fn numbered<T>(&self, input: &mut Input<'_>, kind: Kind) -> (u64, usize, *mut T) {
        (self.handle(input, kind), input.position(), self.arena.place(input))
    }

    /// A control, and an array's pointer and length, for an entry of each of its sets.
    fn control_array<T>(&self, input: &mut Input<'_>) -> (u64, *mut T, usize) {
        (self.handle(input, Kind::Control), self.arena.place(input), input.control_count())
    }

    /// Damages a saved file.
    fn damage(&self, input: &mut Input<'_>) {
        if let Ok(mut bytes) = std::fs::read(self.folder.path().join("state"))
            && !bytes.is_empty()
        {
            let at = input.u32() as usize % bytes.len();
            if input.one_in(2) {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << (input.byte() % 8);
            }
            std::fs::write(self.folder.path().join("damaged"), bytes).unwrap();
        }
    }
}
