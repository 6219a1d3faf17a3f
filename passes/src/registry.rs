//! The table of all passes, in the order in which a full run uses them.

use onnx_quant_ir::pass::Pass;

/// Every pass.
pub fn all() -> Vec<&'static dyn Pass> {
    vec![
        &crate::freeze_initializers::FreezeInitializers,
        &crate::inline_functions::InlineFunctions,
        &crate::lift_constants::LiftConstants,
        &crate::upgrade_opset::UpgradeOpset,
        &crate::remove_identity::RemoveIdentity,
        &crate::fold_constants::FoldConstants,
        &crate::fold_batchnorm::FoldBatchnorm,
        &crate::fuse_gemm::FuseGemm,
        &crate::equalize_layers::EqualizeLayers,
        &crate::absorb_biases::AbsorbBiases,
        &crate::split_channels::SplitChannels,
        &crate::smooth_activations::SmoothActivations,
        &crate::merge_constants::MergeConstants,
        &crate::strip_debug_info::StripDebugInfo,
        &crate::drop_unused::DropUnused,
        &crate::unique_names::UniqueNames,
        &crate::assign_precision::AssignPrecision,
        &crate::split_shared_weights::SplitSharedWeights,
        &crate::correct_bias::CorrectBias,
        &crate::insert_qdq::InsertQdq,
        &crate::share_qdq_parameters::ShareQdqParameters,
        &crate::codebook_weights::CodebookWeights,
        &crate::quantize_weights::QuantizeWeights,
        &crate::quantize_bias::QuantizeBias,
        &crate::quantize_dynamic::QuantizeDynamic,
        &crate::remove_redundant_qdq::RemoveRedundantQdq,
        &crate::matmul_nbits::MatmulNbits,
        &crate::emulate_formats::EmulateFormats,
        &crate::lower_qoperator::LowerQoperator,
        &crate::cast_floats::CastFloats,
        &crate::expand_qoperator::ExpandQoperator,
        &crate::expand_nbits::ExpandNbits,
        &crate::specialize::Specialize,
        &crate::lower_codebook::LowerCodebook,
        &crate::lower_qdq::LowerQdq,
    ]
}

/// The pass of this name.
pub fn find(name: &str) -> Option<&'static dyn Pass> {
    all().into_iter().find(|p| p.info().name == name)
}
