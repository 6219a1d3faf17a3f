//! Text → tokens with their places.

use super::TextError;

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// A bare word.
    Word(String),
    /// A number as written, with its sign; `-inf` too.
    Number(String),
    /// A string literal, unescaped.
    Text(Vec<u8>),
    /// A punctuation character.
    Sign(char),
    /// `=>`
    Arrow,
    /// The end of the text.
    End,
}

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Token {
    /// What to call the token in an error.
    pub(super) fn shown(&self) -> String {
        match &self.kind {
            Kind::Word(w) | Kind::Number(w) => format!("`{w}`"),
            Kind::Text(t) => super::names::comment(&super::names::quoted(t)),
            Kind::Sign(c) => format!("`{c}`"),
            Kind::Arrow => "`=>`".to_owned(),
            Kind::End => "the end of the text".to_owned(),
        }
    }
}

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    column: usize,
}

/// The tokens of a text; the last is [`Kind::End`].
pub(super) fn tokens(source: &str) -> Result<Vec<Token>, TextError> {
    let mut lexer = Lexer {
        rest: source.chars().peekable(),
        line: 1,
        column: 1,
    };
    let mut out = Vec::new();
    loop {
        lexer.blank()?;
        let (line, column) = (lexer.line, lexer.column);
        let kind = lexer.token()?;
        let end = kind == Kind::End;
        out.push(Token { kind, line, column });
        if end {
            return Ok(out);
        }
    }
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        if c == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(c)
    }

    fn next_if(&mut self, test: impl Fn(char) -> bool) -> Option<char> {
        if self.rest.peek().is_some_and(|&c| test(c)) {
            return self.next();
        }
        None
    }

    fn error(&self, message: impl Into<String>) -> TextError {
        TextError::Syntax {
            line: self.line,
            column: self.column,
            message: message.into(),
        }
    }

    fn blank(&mut self) -> Result<(), TextError> {
        loop {
            while self.next_if(char::is_whitespace).is_some() {}
            match self.rest.peek() {
                Some('#') => {}
                Some('/') => {
                    self.next();
                    if self.rest.peek() != Some(&'/') {
                        return Err(self.error("a comment begins with `//` or `#`"));
                    }
                }
                _ => return Ok(()),
            }
            while self.next_if(|c| c != '\n').is_some() {}
        }
    }

    fn token(&mut self) -> Result<Kind, TextError> {
        let Some(&c) = self.rest.peek() else {
            return Ok(Kind::End);
        };
        if c.is_ascii_alphabetic() || c == '_' {
            return Ok(Kind::Word(self.word()));
        }
        if c.is_ascii_digit() || c == '-' || c == '+' {
            return self.number();
        }
        self.next();
        match c {
            '"' => self.text(),
            '=' if self.next_if(|c| c == '>').is_some() => Ok(Kind::Arrow),
            '<' | '>' | '(' | ')' | '[' | ']' | '{' | '}' | ',' | ':' | '=' | '.' | '@' | '$'
            | '?' => Ok(Kind::Sign(c)),
            other => Err(self.error(format!("`{}` means nothing here", other.escape_debug()))),
        }
    }

    fn word(&mut self) -> String {
        let mut out = String::new();
        while let Some(c) = self.next_if(|c| c.is_ascii_alphanumeric() || c == '_') {
            out.push(c);
        }
        out
    }

    fn number(&mut self) -> Result<Kind, TextError> {
        let mut out = String::new();
        if let Some(sign) = self.next_if(|c| c == '-' || c == '+') {
            out.extend((sign == '-').then_some('-'));
            if self.rest.peek().is_some_and(char::is_ascii_alphabetic) {
                let word = self.word();
                return match word.as_str() {
                    "inf" | "nan" => Ok(Kind::Number(out + &word)),
                    _ => Err(self.error(format!("`{word}` is not a number"))),
                };
            }
        }
        while let Some(c) = self.next_if(|c| c.is_ascii_digit() || c == '.') {
            out.push(c);
        }
        if let Some(e) = self.next_if(|c| c == 'e' || c == 'E') {
            out.push(e);
            out.extend(self.next_if(|c| c == '-' || c == '+'));
            while let Some(c) = self.next_if(|c| c.is_ascii_digit()) {
                out.push(c);
            }
        }
        if out.parse::<f64>().is_err() {
            return Err(self.error(format!("`{out}` is not a number")));
        }
        Ok(Kind::Number(out))
    }

    fn text(&mut self) -> Result<Kind, TextError> {
        let mut out = Vec::new();
        loop {
            let Some(c) = self.next() else {
                return Err(self.error("a string does not end"));
            };
            match c {
                '"' => return Ok(Kind::Text(out)),
                '\\' => out.extend(self.escape()?),
                c => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
    }

    fn escape(&mut self) -> Result<Option<u8>, TextError> {
        match self.next() {
            Some('n') => Ok(Some(b'\n')),
            Some('t') => Ok(Some(b'\t')),
            Some('r') => Ok(Some(b'\r')),
            Some('\\') => Ok(Some(b'\\')),
            Some('"') => Ok(Some(b'"')),
            Some('x') => {
                let mut digit = || self.next().and_then(|c| c.to_digit(16));
                match (digit(), digit()) {
                    (Some(a), Some(b)) => Ok(Some((a * 16 + b) as u8)),
                    _ => Err(self.error("`\\x` needs two hexadecimal digits")),
                }
            }
            _ => Err(self.error("unknown escape; there are \\n \\t \\r \\\\ \\\" \\xNN")),
        }
    }
}
