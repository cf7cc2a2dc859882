//! Expressions: what is taken, and what evaluating one can cost.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use cel::common::ast::{EntryExpr, Expr, IdedEntryExpr};
use cel::{Context, Env, IdedExpr, Program, extensions};

use super::value::Size;

/// Bytes of one expression at most.
const MAX_SOURCE: usize = 4096;
/// Steps that one look for a pattern stands for.
const PATTERN: u64 = 200;
/// Functions that are evaluated, beside operators; none of them makes a value longer than what it is given.
const FUNCTIONS: &[&str] = &[
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "type",
    "dyn",
    "charAt",
    "indexOf",
    "lastIndexOf",
    "lowerAscii",
    "upperAscii",
    "substring",
    "trim",
    "split",
];

/// One expression and what bounds it.
#[derive(Clone)]
pub(super) struct Expression {
    pub(super) source: Arc<str>,
    program: Arc<Program>,
    /// Nodes of the expression.
    size: u64,
    /// Loops inside each other.
    depth: u32,
    /// How often values are put together outside of loops, and once more.
    sums: u64,
    /// Elements of lists and maps that are written out.
    literals: u64,
    /// Whether a text becomes a list of its characters.
    splits: bool,
    /// Whether it looks at what was there before.
    pub(super) old: bool,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

/// Why an expression is not evaluated.
pub(super) enum Unfit {
    /// It is no expression.
    Wrong(String),
    /// It uses this, which is not evaluated here.
    Beyond(String),
}

fn env() -> &'static Arc<Env> {
    static ENV: OnceLock<Arc<Env>> = OnceLock::new();
    ENV.get_or_init(|| {
        let mut env = Env::stdlib();
        if let Err(error) = env.add_extension(extensions::strings) {
            tracing::error!(%error, "functions of strings are missing from rules");
        }
        Arc::new(env)
    })
}

impl Expression {
    pub(super) fn compile(source: &str) -> Result<Self, Unfit> {
        if source.len() > MAX_SOURCE {
            return Err(Unfit::Wrong(format!("must be at most {MAX_SOURCE} bytes long")));
        }
        let failed = |error: &dyn fmt::Display| Unfit::Wrong(format!("compilation failed: {error}"));
        let program = env().compile(source).map_err(|errors| failed(&errors))?;
        let mut survey = Survey { sums: 1, ..Survey::default() };
        survey.look(program.expression(), &mut Vec::new());
        if let Some(name) = survey.unbound.iter().find(|name| !["self", "oldSelf"].contains(&name.as_str())) {
            return Err(failed(&format!("undeclared reference to '{name}'")));
        }
        if let Some(what) = survey.beyond {
            return Err(Unfit::Beyond(what));
        }
        let Survey { size, depth, sums, literals, splits, unbound, .. } = survey;
        let old = unbound.contains("oldSelf");
        Ok(Self { source: source.into(), program: Arc::new(program), size, depth, sums, literals, splits, old })
    }

    /// What evaluating it can cost with values of this size together.
    pub(super) fn cost(&self, Size { nodes, bytes }: Size) -> u64 {
        let texts = if self.splits { bytes } else { bytes / 64 };
        let range = self.sums.saturating_mul(nodes.saturating_add(texts)).saturating_add(self.literals);
        self.size.saturating_mul(range.saturating_pow(self.depth)).saturating_add(nodes)
    }

    pub(super) fn evaluate(&self, new: &cel::Value, old: Option<&cel::Value>) -> Result<cel::Value, String> {
        let mut context = Context::with_env(Arc::clone(env()));
        context.add_variable_from_value("self", new.clone());
        if let Some(old) = old {
            context.add_variable_from_value("oldSelf", old.clone());
        }
        self.program.execute(&context).map_err(|error| error.to_string())
    }
}

/// What stands in an expression.
#[derive(Default)]
struct Survey {
    size: u64,
    depth: u32,
    sums: u64,
    literals: u64,
    splits: bool,
    unbound: BTreeSet<String>,
    beyond: Option<String>,
}

impl Survey {
    /// `bound` are the variables of the loops around: three each.
    fn look(&mut self, expression: &IdedExpr, bound: &mut Vec<String>) {
        self.size += 1;
        match &expression.expr {
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                // Filters and maps put their lists together that way.
                let gathers = matches!(call.args.first().map(|one| &one.expr),
                    Some(Expr::Ident(first)) if first.starts_with('@') || first.starts_with("__"));
                if name == "_+_" && !gathers {
                    self.sums += 1;
                    if !bound.is_empty() {
                        self.beyond.get_or_insert_with(|| "+ inside a loop".to_owned());
                    }
                }
                self.splits |= name == "split";
                // Its pattern is compiled each time.
                self.size += if name == "matches" { PATTERN } else { 0 };
                let operator = !name.starts_with(|c: char| c.is_ascii_alphabetic());
                if !operator && !FUNCTIONS.contains(&name) {
                    self.beyond.get_or_insert_with(|| format!("{name}()"));
                }
                for one in call.target.as_deref().into_iter().chain(&call.args) {
                    self.look(one, bound);
                }
            }
            Expr::Comprehension(inner) => {
                self.look(&inner.iter_range, bound);
                self.look(&inner.accu_init, bound);
                let before = bound.len();
                bound.push(inner.iter_var.clone());
                bound.push(inner.accu_var.clone());
                bound.extend(inner.iter_var2.clone());
                // Loops inside this one count from here.
                let around = std::mem::take(&mut self.depth);
                for one in [&inner.loop_cond, &inner.loop_step, &inner.result] {
                    self.look(one, bound);
                }
                self.depth = around.max(self.depth + 1);
                bound.truncate(before);
            }
            Expr::Ident(name) => {
                if !bound.contains(name) {
                    self.unbound.insert(name.clone());
                }
            }
            Expr::List(list) => {
                self.literals += list.elements.len() as u64;
                list.elements.iter().for_each(|one| self.look(one, bound));
            }
            Expr::Select(select) => self.look(&select.operand, bound),
            Expr::Map(map) => self.entries(&map.entries, bound),
            Expr::Struct(_) => {
                self.beyond.get_or_insert_with(|| "a typed message".to_owned());
            }
            Expr::Literal(_) | Expr::Unspecified => {}
        }
    }

    fn entries(&mut self, entries: &[IdedEntryExpr], bound: &mut Vec<String>) {
        self.literals += entries.len() as u64;
        for entry in entries {
            if let EntryExpr::MapEntry(entry) = &entry.expr {
                self.look(&entry.key, bound);
                self.look(&entry.value, bound);
            }
        }
    }
}
