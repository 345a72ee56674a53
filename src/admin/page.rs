//! The page for people: static files, embedded. Everything it shows it asks of the API, as anybody may.

use axum::extract::Path;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::refusal::refuse;

/// Nothing from outside, nothing inline, and in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

const INDEX: &str = include_str!("page/index.html");

/// By the name under `/assets/`.
const ASSETS: &[(&str, &str)] = &[
    ("act.js", include_str!("page/act.js")),
    ("api.js", include_str!("page/api.js")),
    ("app.css", include_str!("page/app.css")),
    ("chart.js", include_str!("page/chart.js")),
    ("closer.js", include_str!("page/closer.js")),
    ("dataset.js", include_str!("page/dataset.js")),
    ("datasets.js", include_str!("page/datasets.js")),
    ("dom.js", include_str!("page/dom.js")),
    ("explained.js", include_str!("page/explained.js")),
    ("format.js", include_str!("page/format.js")),
    ("key.js", include_str!("page/key.js")),
    ("letters.js", include_str!("page/letters.js")),
    ("live.js", include_str!("page/live.js")),
    ("machine.js", include_str!("page/machine.js")),
    ("main.js", include_str!("page/main.js")),
    ("now.js", include_str!("page/now.js")),
    ("route.js", include_str!("page/route.js")),
    ("samples.js", include_str!("page/samples.js")),
    ("settings.js", include_str!("page/settings.js")),
    ("states.js", include_str!("page/states.js")),
];

pub(super) async fn index() -> Response {
    file("text/html; charset=utf-8", INDEX)
}

pub(super) async fn asset(Path(name): Path<String>) -> Response {
    let Some((_, text)) = ASSETS.iter().find(|(known, _)| *known == name) else {
        return refuse(StatusCode::NOT_FOUND, format!("the page has no file {name}"));
    };
    let kind =
        if name.ends_with(".css") { "text/css; charset=utf-8" } else { "text/javascript; charset=utf-8" };
    file(kind, text)
}

/// The guard adds `no-store`: after an upgrade no browser mixes files of two versions.
fn file(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 3] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_nothing_inline_and_nothing_from_outside() {
        for script in INDEX.split("<script").skip(1) {
            assert!(script.contains("src=\"assets/") && script.contains("></script>"), "{script}");
        }
        assert!(!INDEX.contains("<style") && !INDEX.contains(" style=") && !INDEX.contains(" onclick"));
        for (name, text) in ASSETS.iter().chain(&[("index.html", INDEX)]) {
            let own = text.replace("http://www.w3.org/2000/svg", "");
            for wrong in [
                "http://",
                "https://",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
            ] {
                assert!(!own.contains(wrong), "{name}: {wrong}");
            }
        }
    }

    #[test]
    fn every_file_that_is_asked_for_is_there_and_none_is_left_over() {
        let is_asked = |name: &str| {
            let asked = [format!("\"assets/{name}\""), format!("\"./{name}\"")];
            ASSETS
                .iter()
                .map(|(_, text)| *text)
                .chain([INDEX])
                .any(|text| asked.iter().any(|one| text.contains(one)))
        };
        for (name, text) in ASSETS {
            assert!(is_asked(name), "nothing asks for {name}");
            for rest in text.split("from \"./").skip(1) {
                let wanted = rest.split('"').next().unwrap();
                assert!(ASSETS.iter().any(|(known, _)| *known == wanted), "{name} asks for {wanted}");
            }
        }
    }
}
