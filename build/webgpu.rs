//! The shaders' variants, joined, checked and written to
//! `$OUT_DIR/shaders/<variant>_<coeffs>.wgsl`; and `$OUT_DIR/shaders.rs`, which embeds them.
//!
//! naga parses and validates each text; then its bindings, entry points and coefficients are
//! compared with what the host expects. An error names the file and the line that it is in.

#[path = "../src/webgpu/layout.rs"]
mod layout;

use std::error::Error;
use std::fs;
use std::path::Path;

use naga::valid::{Capabilities, GlobalUse, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, GlobalVariable, Handle, Module, ScalarKind, Span, StorageAccess, TypeInner};

use super::variants::Variant;
use super::wgsl::{self, Joined};
use super::write;

const SHADERS: &str = "shaders";

pub(crate) fn embed_shaders(variants: &[Variant], out: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-changed={SHADERS}");
    println!("cargo::rerun-if-changed=src/webgpu/layout.rs");

    let folder = out.join("shaders");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut texts = String::new();
    for variant in variants {
        let mut embedded = vec![];
        for coeffs in wgsl::COEFFS {
            let joined = wgsl::join(Path::new(SHADERS), variant, coeffs)?;
            check(&joined, variant, coeffs)?;
            let file = format!("{}_{coeffs}.wgsl", variant.name);
            write(&folder.join(&file), &joined.text)?;
            embedded.push(format!("include_str!(concat!(env!(\"OUT_DIR\"), \"/shaders/{file}\"))"));
        }
        texts += &format!("    ({}),\n", embedded.join(", "));
    }
    let rust = format!(
        "/// The text of each variant, in the table's order: with the coefficients in a uniform buffer, and as immediates.\n\
         const TEXTS: [(&str, &str); {}] = [\n{texts}];\n",
        variants.len()
    );
    write(&out.join("shaders.rs"), &rust)
}

fn check(joined: &Joined, variant: &Variant, coeffs: &str) -> Result<(), String> {
    let module = naga::front::wgsl::parse_str(&joined.text).map_err(|error| {
        let span = error.labels().next().map_or(Span::UNDEFINED, |(span, _)| span);
        let labels = error.labels().map(|(_, label)| label).filter(|label| !label.is_empty());
        let details: String = labels.chain(error.notes()).map(|detail| format!("\n  {detail}")).collect();
        at(joined, span, &format!("{}{details}", error.message()))
    })?;
    let capabilities = if coeffs == "immediate" { Capabilities::IMMEDIATES } else { Capabilities::empty() };
    let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module).map_err(|error| {
        let span = error.spans().next().map_or(Span::UNDEFINED, |(span, _)| *span);
        at(joined, span, &causes(error.as_inner()))
    })?;
    Reflection { joined, module: &module, info: &info, variant, coeffs }.check()
}

fn at(joined: &Joined, span: Span, message: &str) -> String {
    if !span.is_defined() {
        return format!("{SHADERS}, at an unknown place: {message}");
    }
    let location = span.location(&joined.text);
    let place = joined.place(location.line_number as usize, location.line_position as usize);
    format!("{place}: {message}")
}

fn causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message += &format!("\n  {error}");
        cause = error.source();
    }
    message
}

/// A valid text, to be compared with what the host expects.
struct Reflection<'a> {
    joined: &'a Joined,
    module: &'a Module,
    info: &'a ModuleInfo,
    variant: &'a Variant,
    coeffs: &'a str,
}

impl Reflection<'_> {
    fn check(&self) -> Result<(), String> {
        let mut found: Vec<_> = self.module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
        let mut expected = [layout::QUADS, layout::TAILS].concat();
        if self.has_master() {
            expected.extend([layout::SET_MASTERS, layout::SYNC_MASTERS].as_flattened());
        }
        found.sort_unstable();
        expected.sort_unstable();
        if found != expected {
            return Err(format!("the entry points must be {expected:?}, they are {found:?}"));
        }
        if self.variant.format("master").is_some_and(|format| format != "f32") {
            return Err(format!(
                "{}: master must be f32: the shaders that set it count its elements",
                self.variant.name
            ));
        }
        for index in 0..self.module.entry_points.len() {
            self.check_entry_point(index)?;
        }
        self.check_coeffs()
    }

    fn has_master(&self) -> bool {
        self.variant.format("master").is_some()
    }

    fn check_entry_point(&self, index: usize) -> Result<(), String> {
        let entry = &self.module.entry_points[index];
        let of_masters = [layout::SET_MASTERS, layout::SYNC_MASTERS];
        let has_name = |names: &[&str]| names.contains(&entry.name.as_str());
        let quads = has_name(&layout::QUADS) || has_name(&of_masters.map(|[quads, _]| quads));
        let workgroup = if quads { layout::WORKGROUP } else { 1 };
        if entry.workgroup_size != [workgroup, 1, 1] {
            return Err(format!(
                "{}: its workgroup must be [{workgroup}, 1, 1], it is {:?}",
                entry.name, entry.workgroup_size
            ));
        }
        let uses = self.info.get_entry_point(index);
        let mut bindings = vec![];
        for (handle, global) in self.module.global_variables.iter() {
            let access = uses[handle];
            if !access.is_empty() && global.space != AddressSpace::Immediate {
                bindings.push(self.check_binding(handle, global, access, quads)?);
            }
        }
        bindings.sort_unstable();
        let is_of_masters = has_name(of_masters.as_flattened());
        let buffers = match (is_of_masters, self.has_master()) {
            (true, _) => vec![0, 4],
            (false, true) => vec![0, 1, 2, 3, 4],
            (false, false) => vec![0, 1, 2, 3],
        };
        let mut expected: Vec<_> = buffers.into_iter().map(|binding| (layout::TENSOR_GROUP, binding)).collect();
        if self.coeffs == "uniform" && !is_of_masters {
            expected.push((layout::COEFFS_GROUP, 0));
        }
        if bindings != expected {
            return Err(format!("{}: its bindings must be {expected:?}, they are {bindings:?}", entry.name));
        }
        Ok(())
    }

    /// The group and number of a binding, which must be a buffer of the type that the host binds
    /// there.
    fn check_binding(
        &self,
        handle: Handle<GlobalVariable>,
        global: &GlobalVariable,
        access: GlobalUse,
        quads: bool,
    ) -> Result<(u32, u32), String> {
        let name = global.name.as_deref().unwrap_or("a variable without a name");
        let fail = |what: String| {
            Err(at(self.joined, self.module.global_variables.get_span(handle), &format!("{name}: {what}")))
        };
        let Some(binding) = &global.binding else {
            return fail("it must have a binding".to_owned());
        };
        let place = (binding.group, binding.binding);
        if place == (layout::COEFFS_GROUP, 0) {
            return if global.space == AddressSpace::Uniform {
                Ok(place)
            } else {
                fail("it must be uniform".to_owned())
            };
        }
        let Some(role) = layout::ROLES.get(binding.binding as usize) else {
            return fail(format!("the host has no buffer {}", binding.binding));
        };
        let without = |name, suffix| str::strip_suffix(name, suffix).unwrap_or(name);
        if without(without(name, "_parts"), "_bits") != *role {
            return fail(format!("the host binds {role} as {}", binding.binding));
        }
        let read_write = AddressSpace::Storage { access: StorageAccess::LOAD | StorageAccess::STORE };
        if global.space != read_write {
            return fail("the host binds it as read_write".to_owned());
        }
        if *role == "grad" && access.contains(GlobalUse::WRITE) {
            return fail("it must not be written".to_owned());
        }
        let stride = self.expected_stride(role, quads);
        match self.module.types[global.ty].inner {
            TypeInner::Array { stride: found, .. } if found == stride => Ok(place),
            TypeInner::Array { stride: found, .. } => {
                fail(format!("its elements must have {stride} bytes, they have {found}"))
            }
            _ => fail("it must be an array".to_owned()),
        }
    }

    /// The bytes of an array element in a role's buffer: four values (`quads`), or a 32-bit part of
    /// them.
    fn expected_stride(&self, role: &str, quads: bool) -> u32 {
        match (quads, self.variant.format(role)) {
            (true, Some("f32")) => 16,
            (true, _) => 8,
            (false, _) => 4,
        }
    }

    fn check_coeffs(&self) -> Result<(), String> {
        let (handle, global) = self
            .module
            .global_variables
            .iter()
            .find(|(_, global)| global.name.as_deref() == Some("coeffs"))
            .ok_or("the shaders must have a variable coeffs")?;
        let fail = |what: String| Err(at(self.joined, self.module.global_variables.get_span(handle), &what));
        let TypeInner::Struct { members, span } = &self.module.types[global.ty].inner else {
            return fail("coeffs must be a struct".to_owned());
        };
        let fail = |what: String| Err(at(self.joined, self.module.types.get_span(global.ty), &what));
        if *span != layout::COEFFS_BYTES {
            return fail(format!("StepCoeffs must have {} bytes, it has {span}", layout::COEFFS_BYTES));
        }
        let f32_at = |(place, name): (usize, &&'static str)| (*name, 4 * place as u32);
        let expected: Vec<_> = layout::COEFFS.iter().enumerate().map(f32_at).collect();
        let found: Vec<_> =
            members.iter().map(|member| (member.name.as_deref().unwrap_or_default(), member.offset)).collect();
        if found != expected {
            return fail(format!(
                "the fields of StepCoeffs and their offsets must be {expected:?}, they are {found:?}"
            ));
        }
        let is_f32 = |inner: &TypeInner| matches!(inner, TypeInner::Scalar(scalar) if scalar.kind == ScalarKind::Float && scalar.width == 4);
        match members.iter().find(|member| !is_f32(&self.module.types[member.ty].inner)) {
            Some(member) => {
                fail(format!("{} of StepCoeffs must be an f32", member.name.as_deref().unwrap_or_default()))
            }
            None => Ok(()),
        }
    }
}
