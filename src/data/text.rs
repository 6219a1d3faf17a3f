//! Text for language models: a line is a sample, or the whole text is cut into windows of as many tokens.
//!
//! Tokens are made once, when the data is opened, and wait in a temporary file, so that memory does not grow with the
//! text but for the places of its lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use onnx_quant_ir::DataType;
use onnx_quant_ir::dtype::DataTypeExt;
use tokenizers::{PaddingStrategy, Tokenizer};

use super::dataset::Made;
use super::error::DataError;
use super::fill::{Fills, put_float, put_integer};
use super::items::{ItemLayout, Items};
use super::signature::{Input, Signature};
use super::spec::DataSpec;

/// Lines that are tokenized at once.
const LINES: usize = 1024;
/// Bytes that are tokenized at once where lines do not count.
const BLOCK: usize = 1 << 18;
/// Where a mask tells padding apart, lengths are rounded up to a multiple of this, so that there are few shapes.
const STEP: usize = 8;

/// What an input is fed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The tokens.
    Ids,
    /// 1 for a token, 0 for padding.
    Mask,
    /// 0: there is one segment.
    Types,
    /// 0, 1, 2 …
    Positions,
}

/// The places of the inputs that are fed, and with what and in which type.
type Given = (Vec<usize>, Vec<(Role, DataType)>);

#[derive(Debug)]
struct TextItems {
    tokens: Mutex<File>,
    roles: Vec<(Role, DataType)>,
    samples: Samples,
    pad: u32,
}

/// Where the samples lie among the tokens.
#[derive(Debug)]
enum Samples {
    Lines(Vec<Line>),
    Windows { size: usize, count: usize },
}

#[derive(Debug, Clone, Copy)]
struct Line {
    start: u64,
    tokens: u32,
    /// Its length with padding.
    length: u32,
}

/// The samples of a text for the inputs that take tokens, masks, segments and positions, by their names.
pub(super) fn made(
    spec: &DataSpec,
    signature: &Signature,
    fills: &Fills,
) -> Result<Made, DataError> {
    let Some(file) = &spec.tokenizer else {
        return Err(DataError::Spec(format!(
            "{} is a text: give the tokenizer.json of the model with --tokenizer",
            spec.path.display()
        )));
    };
    let mut tokenizer = open(file)?;
    let (given, roles) = roles(spec, signature, fills)?;
    let ids = ids_of(signature, &given, &roles);
    let rank = ids.rank().unwrap_or(2);
    let fixed = ids.fixed(rank.saturating_sub(1));
    let masked = roles.iter().any(|(role, _)| *role == Role::Mask);
    let pad = pad_id(&tokenizer);
    let mut notes = Vec::new();
    let (tokens, samples) = match spec.window {
        Some(size) => {
            if fixed.is_some_and(|f| f != size) {
                return Err(DataError::Spec(format!(
                    "--window {size}: the input `{}` is {ids}",
                    ids.name
                )));
            }
            tokenizer.with_padding(None);
            plain(&mut tokenizer, file)?;
            let most = spec.samples.filter(|_| !spec.shuffle);
            windows(spec, &tokenizer, size, most)?
        }
        None => {
            let whole = match tokenizer.get_padding().map(|p| &p.strategy) {
                Some(PaddingStrategy::Fixed(n)) => Some(*n),
                _ => None,
            };
            tokenizer.with_padding(None);
            let length = |tokens: usize| match fixed.or(whole) {
                Some(n) => n.max(if fixed.is_some() { n } else { tokens }),
                None if masked => tokens.next_multiple_of(STEP),
                None => tokens,
            };
            lines(spec, &tokenizer, fixed, &length, &mut notes)?
        }
    };
    let padded = |l: &Line| l.length > l.tokens;
    if let (Samples::Lines(lines), false) = (&samples, masked)
        && lines.iter().any(padded)
    {
        notes.push(format!(
            "{}: lines are filled up with the token {pad}, and the model has no mask that would tell",
            spec.path.display()
        ));
    }
    let layout = match rank {
        1 => ItemLayout::Feeds,
        _ => ItemLayout::Samples {
            piece: ids.fixed(0),
        },
    };
    Ok(Made {
        items: Box::new(TextItems {
            tokens: Mutex::new(tokens),
            roles,
            samples,
            pad,
        }),
        layout,
        given,
        notes,
        classes: None,
        skipped: 0,
    })
}

fn open(file: &Path) -> Result<Tokenizer, DataError> {
    let text = std::fs::read(file).map_err(|e| DataError::io(file, e))?;
    Tokenizer::from_bytes(text).map_err(|e| DataError::Bad {
        path: file.to_owned(),
        reason: format!("it is no tokenizer.json ({e})"),
    })
}

/// Tokens are not cut short.
fn plain(tokenizer: &mut Tokenizer, file: &Path) -> Result<(), DataError> {
    let done = tokenizer.with_truncation(None);
    done.map(|_| ()).map_err(|e| DataError::Bad {
        path: file.to_owned(),
        reason: e.to_string(),
    })
}

fn pad_id(tokenizer: &Tokenizer) -> u32 {
    let names = ["[PAD]", "<pad>", "<|endoftext|>", "</s>"];
    let known = names.iter().find_map(|n| tokenizer.token_to_id(n));
    let own = tokenizer.get_padding().map(|p| p.pad_id);
    own.or(known).unwrap_or(0)
}

fn role(name: &str) -> Option<Role> {
    let name = name.to_ascii_lowercase();
    let has = |part: &str| name.contains(part);
    if has("mask") {
        Some(Role::Mask)
    } else if has("token_type") || has("segment") {
        Some(Role::Types)
    } else if has("position") {
        Some(Role::Positions)
    } else if has("input_id") || has("token") || name == "ids" || name == "input" {
        Some(Role::Ids)
    } else {
        None
    }
}

/// The inputs that a text feeds, and with what.
fn roles(spec: &DataSpec, signature: &Signature, fills: &Fills) -> Result<Given, DataError> {
    let open = |i: &usize| fills.0[*i].is_none() && !signature.inputs[*i].optional;
    let open: Vec<usize> = (0..signature.inputs.len()).filter(open).collect();
    let mut found: Vec<(usize, Role)> = Vec::new();
    for &i in &open {
        if let Some(role) = role(&signature.inputs[i].name) {
            found.push((i, role));
        }
    }
    if !found.iter().any(|(_, r)| *r == Role::Ids) {
        let integer = |i: &&usize| signature.inputs[**i].dtype.is_integer();
        let rest = open.iter().filter(|i| !found.iter().any(|(f, _)| f == *i));
        let rest: Vec<usize> = rest.filter(integer).copied().collect();
        let [only] = rest[..] else {
            return Err(DataError::Spec(format!(
                "{}: no input of the model is known to take tokens; its inputs are {}",
                spec.path.display(),
                super::fill::listed(&signature.inputs)
            )));
        };
        found.push((only, Role::Ids));
        found.sort_by_key(|(i, _)| *i);
    }
    if found.iter().filter(|(_, r)| *r == Role::Ids).count() > 1 {
        let ids = found.iter().filter(|(_, r)| *r == Role::Ids);
        return Err(DataError::Spec(format!(
            "{}: the inputs {} all could take the tokens; give the others with --input NAME=VALUE",
            spec.path.display(),
            super::fill::listed(ids.map(|(i, _)| &signature.inputs[*i]))
        )));
    }
    for (i, _) in &found {
        let input = &signature.inputs[*i];
        let plain =
            input.dtype.is_float() || input.dtype.is_integer() || input.dtype == DataType::Bool;
        if !plain || matches!(input.rank(), Some(0 | 3..)) {
            return Err(DataError::Spec(format!(
                "{}: the input `{}` is {input}, which a text cannot feed: give it with --input {}=VALUE",
                spec.path.display(),
                input.name,
                input.name
            )));
        }
    }
    let roles = found.iter().map(|(i, r)| (*r, signature.inputs[*i].dtype));
    Ok((found.iter().map(|(i, _)| *i).collect(), roles.collect()))
}

fn ids_of<'a>(signature: &'a Signature, given: &[usize], roles: &[(Role, DataType)]) -> &'a Input {
    let place = roles.iter().position(|(r, _)| *r == Role::Ids);
    &signature.inputs[given[place.unwrap_or(0)]]
}

/// Tokens on their way into a temporary file.
struct Spill {
    file: BufWriter<File>,
    count: u64,
}

impl Spill {
    fn new() -> io::Result<Self> {
        let file = BufWriter::new(tempfile::tempfile()?);
        Ok(Self { file, count: 0 })
    }

    fn add(&mut self, tokens: &[u32]) -> io::Result<()> {
        for token in tokens {
            self.file.write_all(&token.to_le_bytes())?;
        }
        self.count += tokens.len() as u64;
        Ok(())
    }

    fn done(self) -> io::Result<File> {
        self.file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
    }
}

fn fails(path: &Path) -> impl Fn(tokenizers::Error) -> DataError {
    let path = path.to_owned();
    move |e| DataError::Bad {
        path: path.clone(),
        reason: format!("the text cannot be tokenized ({e})"),
    }
}

/// Each line that is not blank is a sample.
fn lines(
    spec: &DataSpec,
    tokenizer: &Tokenizer,
    fixed: Option<usize>,
    length: &dyn Fn(usize) -> usize,
    notes: &mut Vec<String>,
) -> Result<(File, Samples), DataError> {
    let path = &spec.path;
    let io = |e| DataError::io(path, e);
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let mut spill = Spill::new().map_err(io)?;
    let (mut all, mut block) = (Vec::new(), Vec::new());
    let (mut number, mut blank, mut cut) = (0, 0, 0);
    loop {
        let line = text_line(&mut reader, path, number + 1)?;
        number += 1;
        let last = line.is_none();
        match line {
            Some(line) if line.trim().is_empty() => blank += 1,
            Some(line) => block.push(line),
            None => {}
        }
        if block.len() == LINES || last {
            let encoded = tokenizer
                .encode_batch(std::mem::take(&mut block), true)
                .map_err(fails(path))?;
            for encoding in encoded {
                let mut ids = encoding.get_ids();
                if let Some(most) = fixed.filter(|&f| f < ids.len()) {
                    ids = &ids[..most];
                    cut += 1;
                }
                if ids.is_empty() {
                    blank += 1;
                    continue;
                }
                let too_long = |_| DataError::Bad {
                    path: path.clone(),
                    reason: "a line is too long".to_owned(),
                };
                all.push(Line {
                    start: spill.count,
                    tokens: u32::try_from(ids.len()).map_err(too_long)?,
                    length: u32::try_from(length(ids.len())).map_err(too_long)?,
                });
                spill.add(ids).map_err(io)?;
            }
        }
        if last {
            break;
        }
    }
    if all.is_empty() {
        return Err(empty(path));
    }
    if blank > 0 {
        notes.push(format!(
            "{}: {blank} lines are blank and are not used",
            path.display()
        ));
    }
    if cut > 0 {
        notes.push(format!(
            "{}: {cut} lines are longer than the {} tokens that the model takes and are cut",
            path.display(),
            fixed.unwrap_or(0)
        ));
    }
    Ok((spill.done().map_err(io)?, Samples::Lines(all)))
}

fn empty(path: &Path) -> DataError {
    DataError::Bad {
        path: path.to_owned(),
        reason: "the text is empty".to_owned(),
    }
}

/// The next line without its end.
fn text_line(
    reader: &mut BufReader<File>,
    path: &Path,
    number: usize,
) -> Result<Option<String>, DataError> {
    let mut bytes = Vec::new();
    let got = reader.read_until(b'\n', &mut bytes);
    if got.map_err(|e| DataError::io(path, e))? == 0 {
        return Ok(None);
    }
    while bytes.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
        bytes.pop();
    }
    match String::from_utf8(bytes) {
        Ok(line) => Ok(Some(line)),
        Err(_) => Err(DataError::Bad {
            path: path.to_owned(),
            reason: format!("line {number} is no UTF-8 text"),
        }),
    }
}

/// The whole text without special tokens, cut into windows; each has a token after it. `most` ends the work early.
fn windows(
    spec: &DataSpec,
    tokenizer: &Tokenizer,
    size: usize,
    most: Option<usize>,
) -> Result<(File, Samples), DataError> {
    let path = &spec.path;
    let io = |e| DataError::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let mut spill = Spill::new().map_err(io)?;
    let enough = most.map(|m| m as u64 * size as u64 + 1);
    let mut text = Vec::new();
    loop {
        let got = (&mut file)
            .take(BLOCK as u64)
            .read_to_end(&mut text)
            .map_err(io)?;
        let end = if got == 0 { text.len() } else { cut_at(&text) };
        let rest = text.split_off(end);
        let block =
            String::from_utf8(std::mem::replace(&mut text, rest)).map_err(|_| DataError::Bad {
                path: path.clone(),
                reason: "it is no UTF-8 text".to_owned(),
            })?;
        if !block.is_empty() {
            let encoded = tokenizer.encode_fast(block, false).map_err(fails(path))?;
            spill.add(encoded.get_ids()).map_err(io)?;
        }
        if got == 0 || enough.is_some_and(|e| spill.count >= e) {
            break;
        }
    }
    if spill.count == 0 {
        return Err(empty(path));
    }
    let windows = (spill.count - 1) / size as u64;
    let count = usize::try_from(windows).unwrap_or(usize::MAX);
    if count == 0 {
        return Err(DataError::Spec(format!(
            "{} has {} tokens, too few for a window of {size} and the token after it",
            path.display(),
            spill.count
        )));
    }
    Ok((spill.done().map_err(io)?, Samples::Windows { size, count }))
}

/// Where a block may end: behind its last line, else behind its last space, else behind its last whole character.
fn cut_at(text: &[u8]) -> usize {
    let after = |b: u8| text.iter().rposition(|&x| x == b).map(|p| p + 1);
    let whole = || text.iter().rposition(|b| b & 0xc0 != 0x80).unwrap_or(0);
    after(b'\n').or_else(|| after(b' ')).unwrap_or_else(whole)
}

impl TextItems {
    fn place(&self, index: usize) -> Line {
        match &self.samples {
            Samples::Lines(lines) => lines[index],
            Samples::Windows { size, .. } => Line {
                start: index as u64 * *size as u64,
                tokens: *size as u32,
                length: *size as u32,
            },
        }
    }

    fn tokens(&self, start: u64, count: usize) -> io::Result<Vec<u32>> {
        let mut bytes = vec![0; count * 4];
        let mut file = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(start * 4))?;
        file.read_exact(&mut bytes)?;
        let words = bytes.as_chunks::<4>().0.iter();
        Ok(words.map(|&b| u32::from_le_bytes(b)).collect())
    }
}

impl Items for TextItems {
    fn len(&self) -> usize {
        match &self.samples {
            Samples::Lines(lines) => lines.len(),
            Samples::Windows { count, .. } => *count,
        }
    }

    fn dims(&self, index: usize) -> Vec<Vec<usize>> {
        let length = self.place(index).length as usize;
        vec![vec![length]; self.roles.len()]
    }

    fn read(&self, index: usize, out: &mut [Vec<u8>]) -> Result<(), DataError> {
        let line = self.place(index);
        let lost = |e: io::Error| {
            DataError::Spec(format!("the tokens of the text cannot be read back: {e}"))
        };
        let real = line.tokens as usize;
        let mut ids = self.tokens(line.start, real).map_err(lost)?;
        ids.resize(line.length as usize, self.pad);
        for ((role, dtype), out) in self.roles.iter().zip(out) {
            for (i, &id) in ids.iter().enumerate() {
                let value = match role {
                    Role::Ids => i64::from(id),
                    Role::Mask => i64::from(i < real),
                    Role::Types => 0,
                    Role::Positions => i as i64,
                };
                let put = match dtype.is_float() {
                    true => put_float(value as f64, *dtype, out),
                    false => put_integer(value, *dtype, out),
                };
                put.map_err(DataError::Spec)?;
            }
        }
        Ok(())
    }

    fn next_tokens(&self, index: usize) -> Option<Result<Vec<i64>, DataError>> {
        let Samples::Windows { size, .. } = self.samples else {
            return None;
        };
        let tokens = self.tokens(index as u64 * size as u64 + 1, size);
        let lost = |e: io::Error| {
            DataError::Spec(format!("the tokens of the text cannot be read back: {e}"))
        };
        Some(
            tokens
                .map_err(lost)
                .map(|t| t.into_iter().map(i64::from).collect()),
        )
    }
}
