//! Charts of what scenarios measured, as SVG and PNG. The PNG's letters come from a font of 8 by 8 dots in this
//! program, so that no font file and no font library of the system is needed.

use crate::error::CliError;
use font8x8::legacy::BASIC_LEGACY;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
    text_anchor::{HPos, VPos},
};
use std::path::{Path, PathBuf};

/// Width of a chart in dots.
const WIDTH: u32 = 960;
/// Height of one panel in dots.
const PANEL_HEIGHT: u32 = 300;
/// Panels of one chart, which bounds its size.
const PANELS_MAX: usize = 24;
/// Height and width of a letter in dots.
const LETTER: i32 = 8;
/// Series with at most so many points show each.
const POINTS_SHOWN_MAX: usize = 64;
/// Sizes of the font for which the library, which knows no font, foresees enough room for names of series: larger than
/// they are drawn in a PNG, where letters have one size.
const LEGEND_SIZE: (u32, u32) = (13, 18);

/// Where to draw, by the end of the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChartFile {
    /// Lines and text.
    Svg(PathBuf),
    /// Dots.
    Png(PathBuf),
}

/// One diagram.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// What its horizontal axis counts.
    pub across: &'static str,
    /// What its vertical axis measures, with the unit.
    pub up: &'static str,
    /// Its lines.
    pub series: Vec<Series>,
    /// What the values must not pass, as a line.
    pub bound: Option<f64>,
}

/// One line of a diagram.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// Values by their numbers, from 1.
    pub fn by_number(name: impl Into<String>, values: &[f64]) -> Self {
        let points = values.iter().enumerate().map(|(index, value)| ((index + 1) as f64, *value));
        Self { name: name.into(), points: points.collect() }
    }
}

impl ChartFile {
    /// From a path that ends in `.svg` or `.png`.
    ///
    /// # Errors
    /// What to give instead.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let path = PathBuf::from(text);
        match path.extension().and_then(|end| end.to_str()) {
            Some("svg") => Ok(Self::Svg(path)),
            Some("png") => Ok(Self::Png(path)),
            Some(_) | None => Err("give a file that ends in .svg or .png"),
        }
    }

    /// Draws the panels below each other.
    ///
    /// # Errors
    /// [`CliError::Failed`] where the file can't be written.
    pub fn draw(&self, panels: &[Panel]) -> Result<(), CliError> {
        let panels = &panels[..panels.len().min(PANELS_MAX)];
        let size = (WIDTH, PANEL_HEIGHT * (panels.len().max(1) as u32));
        let (path, drawn) = match self {
            Self::Svg(path) => (path, draw(SVGBackend::new(path, size), panels, LEGEND_SIZE.0)),
            Self::Png(path) => (path, draw(Lettered(BitMapBackend::new(path, size)), panels, LEGEND_SIZE.1)),
        };
        drawn.map_err(|what| chart_failed(path, what))
    }
}

fn chart_failed(path: &Path, what: String) -> CliError {
    CliError::Failed {
        subject: path.display().to_string(),
        code: "chart_not_written",
        source: what.into(),
        advice: String::new(),
    }
}

fn draw<B: DrawingBackend>(backend: B, panels: &[Panel], legend: u32) -> Result<(), String> {
    let root = backend.into_drawing_area();
    root.fill(&WHITE).map_err(|error| error.to_string())?;
    for (area, panel) in root.split_evenly((panels.len().max(1), 1)).iter().zip(panels) {
        draw_panel(area, panel, legend).map_err(|error| error.to_string())?;
    }
    root.present().map_err(|error| error.to_string())
}

fn draw_panel<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    panel: &Panel,
    legend: u32,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let (across, up) = ranges(panel);
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 18))
        .margin(10)
        .margin_right(30)
        .x_label_area_size(36)
        .y_label_area_size(84)
        .build_cartesian_2d(across.clone(), up)?;
    chart.configure_mesh().x_desc(panel.across).y_desc(panel.up).light_line_style(WHITE).draw()?;
    for (number, series) in panel.series.iter().enumerate() {
        let line = ShapeStyle { color: Palette99::pick(number).to_rgba(), filled: false, stroke_width: 2 };
        chart
            .draw_series(LineSeries::new(series.points.iter().copied(), line))?
            .label(format!("{}\u{a0}", series.name))
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 14, y)], line));
        if series.points.len() <= POINTS_SHOWN_MAX {
            chart.draw_series(series.points.iter().map(|&point| Circle::new(point, 3, line.filled())))?;
        }
    }
    if let Some(bound) = panel.bound {
        let line = [(across.start, bound), (across.end, bound)];
        chart
            .draw_series(LineSeries::new(line, BLACK))?
            .label("bound\u{a0}")
            .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 14, y)], BLACK));
    }
    chart
        .configure_series_labels()
        .label_font(("sans-serif", legend))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
}

/// What the axes span: all points, from zero upwards, never nothing.
fn ranges(panel: &Panel) -> (std::ops::Range<f64>, std::ops::Range<f64>) {
    let points = || {
        panel.series.iter().flat_map(|series| &series.points).filter(|(x, y)| x.is_finite() && y.is_finite())
    };
    let left = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
    let right = points().map(|(x, _)| *x).fold(f64::NEG_INFINITY, f64::max);
    let across = match (left.is_finite(), left < right) {
        (false, _) => 0.0..1.0,
        (true, false) => left - 0.5..right + 0.5,
        (true, true) => left..right,
    };
    let top = points().map(|(_, y)| *y).chain(panel.bound).fold(0.0, f64::max);
    (across, 0.0..if top > 0.0 { top * 1.1 } else { 1.0 })
}

/// A bitmap on which letters of 8 by 8 dots are written.
struct Lettered<'a>(BitMapBackend<'a>);

type Drawn<'a> = Result<(), DrawingErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>>;

impl<'a> DrawingBackend for Lettered<'a> {
    type ErrorType = <BitMapBackend<'a> as DrawingBackend>::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        self.0.get_size()
    }

    fn ensure_prepared(&mut self) -> Drawn<'a> {
        self.0.ensure_prepared()
    }

    fn present(&mut self) -> Drawn<'a> {
        self.0.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn<'a> {
        self.0.draw_pixel(point, color)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn<'a> {
        self.0.draw_rect(upper_left, bottom_right, style, fill)
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        _style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Self::ErrorType>> {
        Ok((text.chars().count() as u32 * LETTER as u32, LETTER as u32))
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, pos: BackendCoord) -> Drawn<'a> {
        let width = text.chars().count() as i32 * LETTER;
        let dx = match style.anchor().h_pos {
            HPos::Left => 0,
            HPos::Right => -width,
            HPos::Center => -width / 2,
        };
        let dy = match style.anchor().v_pos {
            VPos::Top => 0,
            VPos::Center => -LETTER / 2,
            VPos::Bottom => -LETTER,
        };
        let (transform, color) = (style.transform(), style.color());
        for (x, y) in dots(text) {
            let (x, y) = transform.transform(x + dx, y + dy);
            self.0.draw_pixel((pos.0 + x, pos.1 + y), color)?;
        }
        Ok(())
    }
}

/// The dots of a line of letters. A letter that the font lacks is left out.
fn dots(text: &str) -> impl Iterator<Item = (i32, i32)> {
    let letters = text
        .chars()
        .zip(0..)
        .filter_map(|(letter, place)| Some((*BASIC_LEGACY.get(letter as usize)?, place)));
    letters.flat_map(|(rows, place): ([u8; 8], i32)| {
        let row = move |(y, row): (i32, u8)| {
            (0..LETTER).filter(move |x| row & (1 << x) != 0).map(move |x| (place * LETTER + x, y))
        };
        (0..).zip(rows).flat_map(row)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panels() -> Vec<Panel> {
        let series = vec![
            Series::by_number("alone", &[60.0, 61.5, 59.0]),
            Series::by_number("flood", &[90.0, 99.0, 95.0]),
        ];
        let panel =
            Panel { title: "polite p95".to_owned(), across: "round", up: "ms", series, bound: Some(120.0) };
        let empty = Panel { series: Vec::new(), bound: None, ..panel.clone() };
        let odd = Series { name: "odd".to_owned(), points: vec![(1.0, f64::NAN), (1.0, 0.0)] };
        vec![panel.clone(), empty, Panel { series: vec![odd], ..panel }]
    }

    fn written(name: &str, panels: &[Panel]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        ChartFile::parse(path.to_str().unwrap()).unwrap().draw(panels).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn an_svg_holds_the_titles_as_text() {
        let text = String::from_utf8(written("a.svg", &panels())).unwrap();
        assert!(text.starts_with("<svg"), "{}", &text[..60]);
        assert!(text.contains("polite p95") && text.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn a_png_has_its_magic_and_dots_of_lines_and_letters() {
        let bytes = written("a.png", &panels());
        assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n") && bytes.len() > 4_000, "{}", bytes.len());
    }

    #[test]
    fn a_chart_of_nothing_is_a_chart() {
        assert!(!written("a.svg", &[]).is_empty() && !written("a.png", &[]).is_empty());
    }

    #[test]
    fn a_file_that_can_not_be_written_is_an_error() {
        for name in ["/nowhere/at/all/a.svg", "/nowhere/at/all/a.png"] {
            let error = ChartFile::parse(name).unwrap().draw(&panels()).unwrap_err();
            assert_eq!(error.code(), "chart_not_written");
        }
    }

    #[test]
    fn the_kind_of_file_follows_from_its_name() {
        assert!(matches!(ChartFile::parse("a/b.svg"), Ok(ChartFile::Svg(_))));
        assert!(matches!(ChartFile::parse("b.png"), Ok(ChartFile::Png(_))));
        for wrong in ["", "a", "a.jpg", ".svg", "svg"] {
            assert!(ChartFile::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn letters_are_dots_from_left_to_right() {
        assert_eq!(dots(" ").count(), 0);
        let (one, two) = (dots("l").count(), dots("ll").count());
        assert!(one > 8 && two == 2 * one);
        assert!(dots("ll").all(|(x, y)| (0..16).contains(&x) && (0..8).contains(&y)));
    }
}
