//! How much the layers that read an activation depend on each of its channels: the squared norm of the weights that the
//! channel is multiplied with.

use onnx_quant_ir::{Model, NodeId, ValueId};
use onnx_quant_numerics::observer::Care;
use onnx_quant_numerics::stats::TensorStats;

use crate::ops;

/// What the readers of an activation care for. Without a linear reader, or without statistics of its channels, all
/// values count the same.
pub fn care(model: &Model, value: ValueId, stats: &TensorStats) -> Care {
    for channels in stats.channels() {
        let mut importance = vec![0.0; channels.len()];
        let mut read = false;
        for (node, slot) in model.consumers(value) {
            read |= add(model, node, slot, channels.axis(), &mut importance);
        }
        if read {
            let ranges: Vec<(f32, f32)> =
                channels.ranges().map(|r| r.unwrap_or((0.0, 0.0))).collect();
            return Care::new(&ranges, &importance);
        }
    }
    Care::default()
}

/// Adds the squared norms of a reader's weights; `false` where it is not linear, or sums over another axis.
fn add(model: &Model, node: NodeId, slot: usize, axis: i64, importance: &mut [f64]) -> bool {
    let Some(Ok(linear)) = ops::linear(model, node) else {
        return false;
    };
    let n = model.node(node);
    let transposed = n.attr_i("transB").unwrap_or(0) != 0;
    let (summed, dims_axis) = match n.op_type() {
        "Conv" => (1, 1),
        "ConvTranspose" => (1, 0),
        "Gemm" if n.attr_i("transA").unwrap_or(0) == 0 => (1, usize::from(transposed)),
        "MatMul" if linear.weight == 1 => (-1, 0),
        _ => return false,
    };
    if linear.activation != slot || summed != axis {
        return false;
    }
    let Some(weight) = model.input_constant(node, linear.weight) else {
        return false;
    };
    let dims: Vec<usize> = weight.dims().iter().map(|&d| d as usize).collect();
    let Ok(data) = weight.to_f32() else {
        return false;
    };
    if n.op_type() == "MatMul" && dims.len() != 2 {
        return false;
    }
    let groups = match n.op_type() {
        "Conv" => n.attr_i("group").unwrap_or(1).max(1) as usize,
        _ => 1,
    };
    let inner: usize = dims[dims_axis + 1..].iter().product();
    let channels = dims[dims_axis];
    // Output channels of a group follow each other, and read the input channels of that group.
    let outputs = dims[..dims_axis].iter().product::<usize>();
    if channels * groups != importance.len() || inner == 0 {
        return false;
    }
    for (at, run) in data.chunks(inner).enumerate() {
        let (outer, channel) = (at / channels, at % channels);
        let group = outer * groups / outputs.max(1);
        let norm: f64 = run.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
        importance[group * channels + channel] += norm;
    }
    true
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use onnx_quant_numerics::stats::Samples;

    fn importance(text: &str, axis: i64, channels: usize) -> Option<Vec<f64>> {
        let model = onnx_quant_ir::text::parse(text).unwrap();
        let x = model.main().inputs[0];
        let (node, slot) = model.consumers(x)[0];
        let mut found = vec![0.0; channels];
        add(&model, node, slot, axis, &mut found).then_some(found)
    }

    #[test]
    fn norms_of_the_weights_of_each_input_channel() {
        let matmul = r#"<ir_version: 8, opset_import: ["" : 21]>
            test (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1, 2, 2, 0, 3, 4}> { y = MatMul(x, w) }"#;
        assert_eq!(importance(matmul, -1, 2), Some(vec![9.0, 25.0]));
        assert_eq!(importance(matmul, 1, 2), None);
        let gemm = r#"<ir_version: 8, opset_import: ["" : 21]>
            test (float[N, 2] x) => (float[N, 3] y) <float[3, 2] w = {1, 2, 2, 0, 3, 4}> { y = Gemm <transB = 1> (x, w) }"#;
        assert_eq!(importance(gemm, 1, 2), Some(vec![14.0, 20.0]));
        let depthwise = r#"<ir_version: 8, opset_import: ["" : 21]>
            test (float[N, 2, 4] x) => (float[N, 4, 3] y) <float[4, 1, 2] w = {1, 1, 2, 0, 3, 0, 0, 1}> {
                y = Conv <group = 2> (x, w)
            }"#;
        assert_eq!(importance(depthwise, 1, 2), Some(vec![6.0, 10.0]));
    }

    #[test]
    fn an_outlier_of_a_channel_without_weight_does_not_count() {
        let text = r#"<ir_version: 8, opset_import: ["" : 21]>
            test (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 1, 0, 0}> { y = MatMul(x, w) }"#;
        let model = onnx_quant_ir::text::parse(text).unwrap();
        let mut stats = TensorStats::new(&[-1]);
        stats.observe(Samples::one(0), &[1, 2], &[1.0, 50.0]);
        let care = care(&model, model.main().inputs[0], &stats);
        assert_eq!((care.of(0.5), care.of(20.0)), (1.0, 0.0));
    }
}
