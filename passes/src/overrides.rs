//! What weight optimisation hands to the passes that store weights and biases.

use std::collections::BTreeMap;

use onnx_quant_numerics::affine::QParams;

/// A weight whose codes, and scales where the format lets them be chosen, were searched.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightOverride {
    /// The values that the codes stand for, in the tensor's order.
    pub values: Vec<f32>,
    /// Scale and zero point of each group, in the order in which they are stored; `None` where the format's own stay.
    pub params: Option<Vec<QParams>>,
}

/// Chosen weights, by the key that the weight has once shared weights are split.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WeightOverrides(pub BTreeMap<String, WeightOverride>);

/// What is to be added to the biases of linear operators, one value for each output channel, by node key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BiasCorrections(pub BTreeMap<String, Vec<f32>>);
