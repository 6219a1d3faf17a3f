//! The options of a metric that an external command gives.

use onnx_quant::metric::Metric;

/// How the models are judged, where the caller has a program for it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct MetricArgs {
    /// Judge both models by a command: `{model}` becomes the model's path, the last line printed is the number
    #[arg(long, value_name = "COMMAND")]
    metric_command: Option<String>,
    /// A smaller number of --metric-command is better; the drop is then the relative rise
    #[arg(long, requires = "metric_command")]
    metric_lower_is_better: bool,
}

impl MetricArgs {
    /// The metric, where there is a command.
    pub(crate) fn metric(&self) -> anyhow::Result<Option<Metric>> {
        let Some(command) = &self.metric_command else {
            return Ok(None);
        };
        let metric = Metric::command(command)?;
        Ok(Some(if self.metric_lower_is_better {
            metric.lower_is_better()
        } else {
            metric
        }))
    }
}
