//! The little of Go's template language that templates of network configurations are written in.
//!
//! Containerd takes any Go template; those in use have `{{.PodCIDR}}`, and lists of ranges and routes as in
//! `{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$r}}"}]{{end}}`. That is understood, with `{{-` and `-}}`;
//! anything else is an error rather than a guess.

/// What a template is filled with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values<'a> {
    /// `.PodCIDR`.
    pub(crate) pod_cidr: &'a str,
    /// `.PodCIDRRanges`.
    pub(crate) ranges: &'a [String],
    /// `.Routes`.
    pub(crate) routes: &'a [String],
}

/// A template that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    PodCidr,
    Range(List, Vec<Item>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Ranges,
    Routes,
}

/// A piece of a range's body.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Piece(Piece),
    /// For all elements but the first.
    NotFirst(Vec<Piece>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Index,
    Element,
}

/// Why a text is not such a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// An action has no end.
    #[error("line {line}: {{{{ without }}}}")]
    Unclosed {
        /// Of the action, from 1.
        line: usize,
    },
    /// An action, perhaps one of Go's, that means nothing here.
    #[error(
        "line {line}: {{{{{action}}}}} is not understood here: known are .PodCIDR, range over .PodCIDRRanges or .Routes, and in \
         it its variables and if with its index"
    )]
    Unknown {
        /// Of the action, from 1.
        line: usize,
        /// The beginning of what it says.
        action: String,
    },
    /// A range or an if has no end.
    #[error("a range or an if without its {{{{end}}}}")]
    NoEnd,
}

/// Characters of an action that an error quotes.
const MAX_QUOTE: usize = 80;

/// A text, and the action that follows it.
struct Step<'a> {
    text: &'a str,
    /// None at the template's end.
    action: Option<Action<'a>>,
}

struct Action<'a> {
    line: usize,
    text: &'a str,
    words: Vec<String>,
}

impl Action<'_> {
    fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    fn unknown(&self) -> SyntaxError {
        SyntaxError::Unknown { line: self.line, action: self.text.trim().chars().take(MAX_QUOTE).collect() }
    }
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self, SyntaxError> {
        let mut steps = steps(text)?.into_iter();
        let mut parts = Vec::new();
        while let Some(Step { text, action }) = steps.next() {
            parts.push(Part::Text(text.to_owned()));
            let Some(action) = action else { break };
            parts.push(match action.words()[..] {
                [".PodCIDR"] => Part::PodCidr,
                ["range", ref header @ ..] => {
                    let (names, list) = Names::parse(header).ok_or_else(|| action.unknown())?;
                    Part::Range(list, range_body(&names, &mut steps)?)
                }
                _ => return Err(action.unknown()),
            });
        }
        Ok(Self(parts))
    }

    pub(crate) fn render(&self, values: Values<'_>) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out += text,
                Part::PodCidr => out += values.pod_cidr,
                Part::Range(list, body) => {
                    let elements = match list {
                        List::Ranges => values.ranges,
                        List::Routes => values.routes,
                    };
                    for (index, element) in elements.iter().enumerate() {
                        render_body(body, index, element, &mut out);
                    }
                }
            }
        }
        out
    }
}

fn render_body(body: &[Item], index: usize, element: &str, out: &mut String) {
    let piece = |piece: &Piece, out: &mut String| match piece {
        Piece::Text(text) => *out += text,
        Piece::Index => *out += &index.to_string(),
        Piece::Element => *out += element,
    };
    for item in body {
        match item {
            Item::Piece(one) => piece(one, out),
            Item::NotFirst(_) if index == 0 => {}
            Item::NotFirst(pieces) => pieces.iter().for_each(|one| piece(one, out)),
        }
    }
}

/// What a range calls its index and element.
struct Names<'a> {
    index: Option<&'a str>,
    element: Option<&'a str>,
}

impl<'a> Names<'a> {
    fn parse(header: &[&'a str]) -> Option<(Self, List)> {
        let (index, element, list) = match header {
            [list] => (None, None, list),
            [element, ":=", list] => (None, Some(*element), list),
            [index, ",", element, ":=", list] => (Some(*index), Some(*element), list),
            _ => return None,
        };
        let list = match *list {
            ".PodCIDRRanges" => List::Ranges,
            ".Routes" => List::Routes,
            _ => return None,
        };
        let all_variables = [index, element].into_iter().flatten().all(is_variable);
        all_variables.then_some((Self { index, element }, list))
    }

    fn piece(&self, word: &str) -> Option<Piece> {
        match word {
            "." => Some(Piece::Element),
            _ if Some(word) == self.element => Some(Piece::Element),
            _ if Some(word) == self.index => Some(Piece::Index),
            _ => None,
        }
    }
}

fn is_variable(word: &str) -> bool {
    let name = word.strip_prefix('$').unwrap_or_default();
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Up to the end of the range.
fn range_body<'a>(
    names: &Names<'_>,
    steps: &mut impl Iterator<Item = Step<'a>>,
) -> Result<Vec<Item>, SyntaxError> {
    let mut body = Vec::new();
    while let Some(Step { text, action: Some(action) }) = steps.next() {
        body.push(Item::Piece(Piece::Text(text.to_owned())));
        match action.words()[..] {
            ["end"] => return Ok(body),
            // The index is false where it is 0, as numbers are in Go's templates.
            ["if", condition] if names.piece(condition) == Some(Piece::Index) => {
                body.push(Item::NotFirst(if_body(names, steps)?));
            }
            [word] => body.push(Item::Piece(names.piece(word).ok_or_else(|| action.unknown())?)),
            _ => return Err(action.unknown()),
        }
    }
    Err(SyntaxError::NoEnd)
}

/// Up to the end of the if.
fn if_body<'a>(
    names: &Names<'_>,
    steps: &mut impl Iterator<Item = Step<'a>>,
) -> Result<Vec<Piece>, SyntaxError> {
    let mut pieces = Vec::new();
    while let Some(Step { text, action: Some(action) }) = steps.next() {
        pieces.push(Piece::Text(text.to_owned()));
        match action.words()[..] {
            ["end"] => return Ok(pieces),
            [word] => pieces.push(names.piece(word).ok_or_else(|| action.unknown())?),
            _ => return Err(action.unknown()),
        }
    }
    Err(SyntaxError::NoEnd)
}

/// Cuts a template at its actions. White space goes where an action's dash takes it.
fn steps(text: &str) -> Result<Vec<Step<'_>>, SyntaxError> {
    let mut steps = Vec::new();
    let mut rest = text;
    let mut trim_start = false;
    let trimmed = |text: &'_ str, start| if start { text.len() - text.trim_start().len() } else { 0 };
    loop {
        let from = trimmed(rest, trim_start);
        let Some((before, after)) = rest.split_once("{{") else {
            steps.push(Step { text: &rest[from..], action: None });
            return Ok(steps);
        };
        let line = text[..text.len() - after.len()].matches('\n').count() + 1;
        let (action, following) = after.split_once("}}").ok_or(SyntaxError::Unclosed { line })?;
        let mut before = before.get(from..).unwrap_or_default();
        let mut inner = action;
        if let Some(dashed) = inner.strip_prefix('-').filter(|d| d.starts_with(char::is_whitespace)) {
            before = before.trim_end();
            inner = dashed;
        }
        let dashed = inner.strip_suffix('-').filter(|d| d.ends_with(char::is_whitespace));
        trim_start = dashed.is_some();
        let inner = dashed.unwrap_or(inner);
        let spaced = inner.replace(":=", " := ").replace(',', " , ");
        let words = spaced.split_whitespace().map(str::to_owned).collect();
        steps.push(Step { text: before, action: Some(Action { line, text: action, words }) });
        rest = following;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(text: &str) -> String {
        let ranges = ["10.1.0.0/24".to_owned(), "fd00::/64".to_owned()];
        let routes = ["0.0.0.0/0".to_owned(), "::/0".to_owned()];
        Template::parse(text).unwrap().render(Values {
            pod_cidr: "10.1.0.0/24",
            ranges: &ranges,
            routes: &routes,
        })
    }

    #[test]
    fn the_forms_of_templates_in_use_are_filled_in() {
        for (text, wanted) in [
            ("", ""),
            ("plain { } text", "plain { } text"),
            (r#"{"subnet": "{{.PodCIDR}}"}"#, r#"{"subnet": "10.1.0.0/24"}"#),
            ("{{ .PodCIDR }},{{.PodCIDR}}", "10.1.0.0/24,10.1.0.0/24"),
            (
                r#"[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}]"#,
                r#"[[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]"#,
            ),
            (r"{{range $i,$r:=.Routes}}{{if $i}},{{end}}{{$r}}{{end}}", "0.0.0.0/0,::/0"),
            ("{{range $r := .Routes}}<{{$r}}>{{end}}", "<0.0.0.0/0><::/0>"),
            ("{{range .Routes}}<{{.}}>{{end}}", "<0.0.0.0/0><::/0>"),
            ("{{range $i, $r := .Routes}}{{if $i}}{{$i}}={{$r}}{{end}}{{end}}", "1=::/0"),
            ("a \n {{- .PodCIDR -}} \n b", "a10.1.0.0/24b"),
            ("a {{- range .Routes -}} \t {{ . }} {{- end }} b", "a0.0.0.0/0::/0 b"),
        ] {
            assert_eq!(render(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_told_with_its_line() {
        let unknown = |line, action: &str| SyntaxError::Unknown { line, action: action.to_owned() };
        for (text, wanted) in [
            ("\n{{.PodCIDR", SyntaxError::Unclosed { line: 2 }),
            ("{{.Gateway}}", unknown(1, ".Gateway")),
            ("\n\n{{ printf \"%s\" .PodCIDR }}", unknown(3, "printf \"%s\" .PodCIDR")),
            ("{{}}", unknown(1, "")),
            ("{{end}}", unknown(1, "end")),
            ("{{if .PodCIDR}}x{{end}}", unknown(1, "if .PodCIDR")),
            ("{{range .Nodes}}{{end}}", unknown(1, "range .Nodes")),
            ("{{range i, r := .Routes}}{{end}}", unknown(1, "range i, r := .Routes")),
            ("{{range .Routes}}{{.PodCIDR}}{{end}}", unknown(1, ".PodCIDR")),
            ("{{range .Routes}}{{range .Routes}}{{end}}{{end}}", unknown(1, "range .Routes")),
            ("{{range $i, $r := .Routes}}{{if $r}}{{end}}{{end}}", unknown(1, "if $r")),
            ("{{range $i, $r := .Routes}}{{if $i}}{{else}}{{end}}{{end}}", unknown(1, "else")),
            ("{{range $r := .Routes}}\n{{$i}}{{end}}", unknown(2, "$i")),
            ("{{range .Routes}}{{.}}", SyntaxError::NoEnd),
            ("{{range $i, $r := .Routes}}{{if $i}}", SyntaxError::NoEnd),
        ] {
            assert_eq!(Template::parse(text), Err(wanted), "{text}");
        }
        let error = Template::parse("{{.Gateway}}").unwrap_err().to_string();
        assert!(
            error.starts_with("line 1: {{.Gateway}} is not understood here: known are .PodCIDR, "),
            "{error}"
        );
    }
}
