//! Values that share one scale: the inputs and the output of a Concat, where the target wants that.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::{DataType, NodeId, ValueId};
use onnx_quant_numerics::affine::{QOptions, QParams, choose_qparams};
use onnx_quant_numerics::format::{Base, Format};

use super::bearing;
use super::placement::{Mode, Placement, Quantized};
use crate::calibration::Calibration;
use crate::qdq;
use crate::target::Role;

/// The operators of one scale and their quantized values.
struct Group {
    nodes: Vec<NodeId>,
    values: BTreeSet<ValueId>,
}

/// Gives every group the parameters of the union of its ranges.
///
/// # Errors
/// The operators of a group that does not bear one scale, with the reason.
pub(super) fn unify(
    placement: &Placement<'_>,
    quantized: &Quantized,
    calibration: &Calibration,
    (formats, floats): (&BTreeMap<ValueId, Format>, &BTreeMap<ValueId, DataType>),
    params: &mut BTreeMap<ValueId, QParams>,
) -> Result<(), (Vec<NodeId>, String)> {
    let settings = placement.settings;
    for group in groups(placement, quantized) {
        let bases: BTreeSet<Base> = group
            .values
            .iter()
            .filter_map(|v| formats.get(v).map(|f| f.base))
            .collect();
        let base = match bases.iter().collect::<Vec<_>>()[..] {
            [base] => *base,
            [] => continue,
            _ => {
                let reason =
                    "its inputs and output would share one scale, but have different formats";
                return Err((group.nodes, reason.to_owned()));
            }
        };
        let known: Vec<QParams> = group
            .values
            .iter()
            .filter_map(|v| params.get(v).copied())
            .collect();
        if known.len() == group.values.len() && known.windows(2).all(|w| w[0] == w[1]) {
            // Anew from the range, the scale could differ in its last bit.
            continue;
        }
        let ranges: Vec<(f32, f32)> = group
            .values
            .iter()
            .filter_map(|v| params.get(v).map(QParams::real_range))
            .collect();
        let low = ranges.iter().map(|r| r.0).fold(0.0, f32::min);
        let high = ranges.iter().map(|r| r.1).fold(0.0, f32::max);
        let options = QOptions {
            narrow: false,
            reduce_range: settings.reduce_range,
        };
        let scheme = settings.activation_scheme;
        let mut shared = choose_qparams(low, high, base, scheme, options)
            .map_err(|e| (group.nodes.clone(), e.to_string()))?;
        for v in &group.values {
            let float = floats.get(v).copied().unwrap_or(DataType::Float);
            shared.scale = qdq::stored_scale(shared.scale, float);
        }
        for &v in &group.values {
            let model = placement.model;
            let forced = group.nodes.iter().any(|&n| placement.forced(n));
            let seen = calibration
                .values
                .get(&model.value_key(v))
                .filter(|_| !forced);
            let sqnr = seen.map_or(f64::INFINITY, |s| {
                bearing::expected_sqnr(s.histogram(), &shared, base)
            });
            let least = bearing::least_sqnr(settings, base);
            if sqnr < least {
                let reason = format!(
                    "its inputs and output would share one scale, with which `{}` keeps only {sqnr:.1} dB, less than {:.0}",
                    model.value(v).name,
                    least
                );
                return Err((group.nodes, reason));
            }
            params.insert(v, shared);
        }
    }
    Ok(())
}

fn groups(placement: &Placement<'_>, quantized: &Quantized) -> Vec<Group> {
    let model = placement.model;
    let mut groups: Vec<Group> = Vec::new();
    for (&node, mode) in &placement.modes {
        let role = placement.target.role(model.node(node).op_type());
        if *mode != Mode::Supporting || role != Some(Role::OneScale) {
            continue;
        }
        let around = model
            .inputs(node)
            .into_iter()
            .chain([placement.result(node)]);
        let values: BTreeSet<ValueId> = around
            .flatten()
            .filter(|v| quantized.contains_key(v))
            .collect();
        let mut group = Group {
            nodes: vec![node],
            values,
        };
        let (touching, apart): (Vec<Group>, Vec<Group>) = groups
            .into_iter()
            .partition(|g| !g.values.is_disjoint(&group.values));
        groups = apart;
        for g in touching {
            group.nodes.extend(g.nodes);
            group.values.extend(g.values);
        }
        groups.push(group);
    }
    groups
}
