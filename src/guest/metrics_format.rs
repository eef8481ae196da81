//! Which of the two metrics formats an HTTP client gets: the `Accept` field of a request (RFC 9110, 12.5.1).
//!
//! This is the only place that knows the content types. **Hostile peer**: the field is bounded by the request's head
//! ([`HEAD_LIMIT`](crate::host::scrape::HEAD_LIMIT)), and is read once for each format.

/// How figures are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text exposition format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The `Content-Type` of a document in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The format that an `Accept` field asks for: OpenMetrics for a client that names it and likes it no less than
    /// Prometheus's, and Prometheus's for every other.
    pub fn of_accept(accept: &str) -> Format {
        let open_metrics = Format::OpenMetrics.weight_in(accept);
        match open_metrics > 0.0 && open_metrics >= Format::Prometheus.weight_in(accept) {
            true => Format::OpenMetrics,
            false => Format::Prometheus,
        }
    }

    /// How much an `Accept` field wants this format. The range that says most about it decides; ranges with a wildcard
    /// stand for Prometheus's format only, since every client can read that one.
    fn weight_in(self, accept: &str) -> f64 {
        let wildcards = self == Format::Prometheus;
        let weights = accept.split(',').filter_map(|range| Range::parse(range)?.weight_for(self.content_type(), wildcards));
        weights.max_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1))).map_or(0.0, |(_, weight)| weight)
    }
}

/// One media range of an `Accept` field.
struct Range<'a> {
    name: &'a str,
    version: Option<&'a str>,
    weight: f64,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Range<'a>> {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Range { name: parts.next()?, version: None, weight: 1.0 };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            match key.trim().to_ascii_lowercase().as_str() {
                "version" => range.version = Some(value.trim().trim_matches('"')),
                "q" => range.weight = value.trim().parse().ok().filter(|weight| (0.0..=1.0).contains(weight))?,
                _ => {}
            }
        }
        Some(range)
    }

    /// How much it says about a content type, and how much that is wanted.
    fn weight_for(&self, kind: &str, with_wildcards: bool) -> Option<(usize, f64)> {
        let kind = Range::parse(kind)?;
        let precision = match self.name {
            "*/*" if with_wildcards => 0,
            name if with_wildcards && name.strip_suffix("/*").is_some_and(|class| kind.name.split('/').next() == Some(class)) => {
                1
            }
            name if name.eq_ignore_ascii_case(kind.name) && (self.version.is_none() || self.version == kind.version) => {
                2 + usize::from(self.version.is_some())
            }
            _ => return None,
        };
        Some((precision, self.weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_that_is_asked_for_is_given_and_prometheus_s_to_a_client_that_does_not_know_the_other() {
        for (accept, format) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain", Format::Prometheus),
            ("application/*", Format::Prometheus),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; version=1.0.0; charset=utf-8", Format::OpenMetrics),
            ("application/openmetrics-text;version=\"1.0.0\"", Format::OpenMetrics),
            ("application/openmetrics-text; version=2.0.0", Format::Prometheus),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("application/openmetrics-text;q=0.2, text/plain;q=0.9", Format::Prometheus),
            ("application/openmetrics-text;q=0.2, text/plain;version=1.0.0;q=0.9, text/plain;q=0.1", Format::OpenMetrics),
            ("application/openmetrics-text;q=2, */*", Format::Prometheus),
            // Prometheus 2 and 3.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            (";;=,/*,q=1", Format::Prometheus),
        ] {
            assert_eq!(Format::of_accept(accept), format, "{accept}");
        }
    }
}
