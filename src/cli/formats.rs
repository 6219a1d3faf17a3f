//! `onnx-quant formats`: the registry of number formats.

use onnx_quant::numerics::format::{Base, Family, Format};
use onnx_quant::numerics::{quality, scaling::WeightCalibrator};
use onnx_quant::passes::target::{TARGETS, cannot_run};
use serde::Serialize;

use super::{Global, Outcome, output};

/// The options of `formats`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Explain one format, for example int4:block32
    #[arg(long, value_name = "FORMAT")]
    explain: Option<Format>,
}

/// A format as it is listed.
#[derive(Serialize)]
struct Row {
    name: String,
    family: &'static str,
    bits: u32,
    stored_bits: u32,
    signed: bool,
    /// Smallest and largest number with scale 1.
    range: [f32; 2],
    /// Ratio of the largest to the smallest positive number.
    dynamic_range_db: f64,
    /// Bits a value, scales and zero points counted, of a matrix of 64 x 1024.
    effective_bits: f64,
    /// Of Gaussian values; absent where codes are no numbers with a scale, and where there is no error.
    gaussian_sqnr_db: Option<f64>,
    storage_type: i32,
    min_opset: i64,
    min_ir: i64,
    scales: &'static str,
    packing: &'static str,
    decoded_by: &'static str,
    /// How ranges of weights are chosen unless told otherwise.
    weight_calibrator: String,
    /// Runtimes that do not read it, and why.
    not_on: Vec<(&'static str, String)>,
}

impl Row {
    fn of(format: Format) -> Self {
        let info = format.base.info();
        let granularity = format.weight_granularity();
        let whole = Format {
            granularity: (info.family != Family::Cast).then_some(granularity),
            ..format
        };
        let not_on = TARGETS
            .iter()
            .filter_map(|t| Some((t.word, cannot_run(t.name, whole)?)));
        Self {
            name: whole.to_string(),
            family: info.family.name(),
            bits: info.bits,
            stored_bits: info.storage_bits,
            signed: info.signed,
            range: [info.range.0, info.range.1],
            dynamic_range_db: quality::dynamic_range(format.base),
            effective_bits: quality::footprint(whole)
                .effective_bits((quality::SAMPLE.0 * quality::SAMPLE.1) as u64),
            gaussian_sqnr_db: quality::gaussian_sqnr(whole).filter(|x| x.is_finite()),
            storage_type: info.onnx_type,
            min_opset: whole.min_opset().max(info.min_opset),
            min_ir: info.min_ir,
            scales: info.scales,
            packing: info.packing,
            decoded_by: info.decoded_by,
            weight_calibrator: WeightCalibrator::default_for(format.base).to_string(),
            not_on: not_on.collect(),
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let formats: Vec<Format> = match args.explain {
        Some(format) => vec![format],
        None => {
            let fixed = Base::Fixed {
                whole: 4,
                fraction: 4,
            };
            let bases = Base::all().into_iter().chain([fixed]);
            let listed = bases.map(|base| Format {
                base,
                granularity: None,
            });
            let extra = [
                "int4:block32",
                "int8:block32",
                "fp8e4m3:block32",
                "fp4e2m1:block32",
                "int4:vsq16",
            ];
            listed
                .chain(extra.iter().filter_map(|t| t.parse().ok()))
                .collect()
        }
    };
    let rows: Vec<Row> = formats.into_iter().map(Row::of).collect();
    if global.json {
        output::json(&rows)?;
        return Ok(Outcome::Done);
    }
    if args.explain.is_some() {
        output::print(&rows.iter().map(explanation).collect::<String>())?;
        return Ok(Outcome::Done);
    }
    let head = [
        "format",
        "family",
        "bits",
        "effective",
        "range dB",
        "Gaussian dB",
        "opset",
        "scales",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    table.extend(rows.iter().map(|r| {
        vec![
            r.name.clone(),
            r.family.to_owned(),
            r.bits.to_string(),
            format!("{:.3}", r.effective_bits),
            format!("{:.1}", r.dynamic_range_db),
            r.gaussian_sqnr_db
                .map_or("-".to_owned(), |x| format!("{x:.1}")),
            r.min_opset.to_string(),
            r.scales.to_owned(),
        ]
    }));
    let mut text = output::table(&table);
    text.push_str("A format is written BASE[:GRANULARITY]: tensor, channel, blockN or vsqN. effective: bits a value, scales and\nzero points counted, of a matrix of 64 x 1024; Gaussian dB: SQNR of normal values in it.\n");
    output::print(&text)?;
    Ok(Outcome::Done)
}

fn explanation(r: &Row) -> String {
    let sqnr = r
        .gaussian_sqnr_db
        .map_or("-".to_owned(), |x| format!("{x:.2} dB"));
    let mut text = format!(
        "{}\n  family            {}\n  bits of a code    {} (stored in {})\n  numbers           {} to {} with scale 1{}\n  \
         dynamic range     {:.1} dB\n  effective bits    {:.4} a value of a matrix of 64 x 1024\n  Gaussian SQNR     {sqnr}\n  \
         scales            {}\n  stored as         TensorProto type {}, {}\n  decoded by        {}\n  \
         needs             opset {}, IR {}\n  weight ranges     {}\n",
        r.name,
        r.family,
        r.bits,
        r.stored_bits,
        r.range[0],
        r.range[1],
        if r.signed { "" } else { " and zero point 0" },
        r.dynamic_range_db,
        r.effective_bits,
        r.scales,
        r.storage_type,
        r.packing,
        r.decoded_by,
        r.min_opset,
        r.min_ir,
        r.weight_calibrator,
    );
    for (target, why) in &r.not_on {
        text.push_str(&format!("  not on {target:<11}{why}\n"));
    }
    text
}
