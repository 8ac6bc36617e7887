//! HTTP requests over connections that stay and over new ones.

use crate::Effort;
use crate::collector::Collector;
use crate::session::Session;

pub(crate) fn run(_: &Session<'_>, _: &Effort, _: &mut Collector<'_>) {}
