//! Whether an app passes on the trace contexts that it receives. A sidecar counts, this decides. It cannot see which
//! request an app sends for which, so it asks for much before it accuses: an app that only begins requests, or that does
//! so beside those that it serves (a timer, a queue, an exporter), is none of its business.

/// Requests seen before anything is said.
const ENOUGH: u64 = 20;

/// Requests of an app since its sidecar started.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// To it, with a context.
    pub served: u64,
    /// From it, with a context.
    pub passed_on: u64,
    /// From it, without one.
    pub orphans: u64,
    /// Of these, sent while it served at least one that had one.
    pub meanwhile: u64,
}

impl Counts {
    /// Contexts end at this app:
    ///
    /// - it has received 20 at least, and sent 20 requests at least without one while it served some that had one;
    /// - fewer than a tenth of what it sends has one: an app that passes them on is not accused of work of its own;
    /// - nine tenths of those without one were sent while it served: work of its own comes at any time;
    /// - they are at least a tenth of those that it served: a timer of a busy app is not what is looked for.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        let Self { served, passed_on, orphans, meanwhile } = *self;
        let sent = passed_on.saturating_add(orphans);
        served >= ENOUGH
            && meanwhile >= ENOUGH
            && passed_on.saturating_mul(10) < sent
            && meanwhile.saturating_mul(10) >= orphans.saturating_mul(9)
            && meanwhile.saturating_mul(10) >= served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_accused_only_of_what_looks_like_nothing_else() {
        for (what, served, passed_on, orphans, meanwhile, broken) in [
            ("each request causes one without a context", 1000, 0, 1000, 1000, true),
            ("each causes three", 1000, 0, 3000, 3000, true),
            ("every tenth causes one", 1000, 0, 100, 100, true),
            ("a few are passed on, by another library", 1000, 50, 950, 950, true),
            ("it has just started", 19, 0, 19, 19, false),
            ("it is called, and calls nobody", 1000, 0, 0, 0, false),
            ("it calls, and nobody calls it", 0, 0, 1000, 0, false),
            ("it passes them on", 1000, 1000, 0, 0, false),
            ("it passes them on, and a busy timer calls too", 1000, 1000, 900, 900, false),
            ("half of its calls have one", 1000, 500, 500, 500, false),
            ("a worker calls at any time", 1000, 0, 1000, 400, false),
            ("a timer of an app that is always busy", 100_000, 0, 500, 500, false),
            ("its callers have no contexts", 0, 0, 1000, 0, false),
        ] {
            let counts = Counts { served, passed_on, orphans, meanwhile };
            assert_eq!(counts.is_broken(), broken, "{what}");
        }
    }
}
