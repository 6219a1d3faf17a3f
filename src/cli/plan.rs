//! The options of the plan file.

use std::path::{Path, PathBuf};

use onnx_quant::ir::{load, save};
use onnx_quant::mixed::auto;
use onnx_quant::mixed::plan_file::{self, PlanFile};
use onnx_quant::optimize::Options;
use onnx_quant::quantize::Quantized;

/// A plan that is carried out, or written.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct PlanArgs {
    /// Carry out a plan: formats, scales and layers are those of the file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["weights", "activations", "weight_scheme", "activation_scheme",
        "calibrator", "min_activation_sqnr", "include", "exclude", "reduce_range"])]
    plan: Option<PathBuf>,
    /// Write what was decided as a plan (TOML), to be read, edited and carried out with --plan
    #[arg(long, value_name = "FILE")]
    save_plan: Option<PathBuf>,
}

impl PlanArgs {
    /// The files that the options name: read, and written.
    pub(crate) fn files(&self) -> (Option<&PathBuf>, Option<&PathBuf>) {
        (self.plan.as_ref(), self.save_plan.as_ref())
    }

    /// The plan that is to be carried out on this model.
    pub(crate) fn open(&self, model: &Path) -> anyhow::Result<Option<PlanFile>> {
        let Some(path) = &self.plan else {
            return Ok(None);
        };
        let plan = PlanFile::read(path)?;
        plan.check_model(&load::load(model)?)?;
        Ok(Some(plan))
    }

    /// Writes the plan of what was done, where one is wanted.
    pub(crate) fn save(&self, done: &Quantized, optimize: &Options) -> anyhow::Result<()> {
        let Some(path) = &self.save_plan else {
            return Ok(());
        };
        let remarks = done.mixed.as_ref();
        let remarks = remarks.map(|m| auto::remarks(&m.chosen, &m.sensitivity));
        let remarks = remarks.unwrap_or_default();
        let text = plan_file::write(&done.float, &done.settings, &done.plan, optimize, &remarks)?;
        save::write_atomically(path, |f| f.write_all(text.as_bytes()))?;
        Ok(())
    }
}
