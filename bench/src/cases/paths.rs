//! Paths with delay and loss behind the host.

use usernet_lab::Lab;

use crate::Effort;
use crate::collector::Collector;
use crate::contender::Contender;

pub(crate) fn run(_: &Lab, _: &Contender, _: &Effort, _: &mut Collector<'_>) {}
