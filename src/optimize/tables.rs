//! Tables whose rows are looked up: nothing averages their errors, and no layer stands before them that could make up for
//! them.

use onnx_quant_numerics::format::Base;
use onnx_quant_passes::plan::PrecisionPlan;
use onnx_quant_passes::settings::QuantSettings;

use super::Options;
use super::notes::Notes;

/// Bits of a table.
const BITS: u8 = 8;

/// With `best`, stores tables of fewer than 8 bits in 8, except where a rule for their node gave a format other than that of the model;
/// says which.
pub(crate) fn widen_tables(
    plan: &mut PrecisionPlan,
    settings: &QuantSettings,
    options: &Options,
) -> Vec<String> {
    let mut notes = Notes::default();
    if !options.methods.is_best() {
        return Vec::new();
    }
    for form in &mut plan.weights {
        let ruled = settings.weights.is_none_or(|w| w.base != form.format.base);
        if !form.gathered || ruled {
            continue;
        }
        let base = match form.format.base {
            Base::Int(bits) if bits < BITS => Base::Int(BITS),
            Base::Uint(bits) if bits < BITS => Base::Uint(BITS),
            _ => continue,
        };
        notes.say(
            &format!("stored in {BITS} bits:"),
            &form.key,
            ": rows are looked up, and nothing averages their errors; a rule (--layer) for the node gives another format",
        );
        form.format.base = base;
    }
    notes.lines().collect()
}
