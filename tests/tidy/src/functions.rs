//! How long functions are.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A function, method or provided trait method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The line of its signature, from 1.
    pub line: usize,
    /// Lines from the signature to the closing brace.
    pub lines: usize,
}

/// All functions of a source text, unit tests included.
pub fn functions(text: &str) -> syn::Result<Vec<Function>> {
    let mut collector = Collector(Vec::new());
    collector.visit_file(&syn::parse_file(text)?);
    Ok(collector.0)
}

struct Collector(Vec<Function>);

impl Collector {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let line = signature.span().start().line;
        let last = block.span().end().line;
        let name = signature.ident.to_string();
        self.0.push(Function { name, line, lines: last + 1 - line });
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.add(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_as_long_as_its_lines() {
        let text = "struct A;\nimpl A {\n    /// Doc.\n    fn a(\n        &self,\n    ) {\n    }\n}\nfn b() {}\n";
        let found = functions(text).expect("it parses");
        let found: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.line, f.lines)).collect();
        assert_eq!(found, [("a", 4, 4), ("b", 9, 1)]);
    }
}
