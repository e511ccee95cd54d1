//! The terminal: taken over while `top` runs, and given back as it was, whatever happens.

use std::io::{Write, stdout};
use std::sync::Once;
use std::time::Duration;

use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::terminal::{self, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{cursor, execute, queue, style};

use super::screen::Line;

/// What was pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Letter(char),
    Enter,
    Escape,
    Backspace,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    /// Ctrl-C.
    Interrupt,
    /// The window has another size.
    Resized,
}

/// The terminal while it is ours; dropped, it is as before.
pub(super) struct Terminal {
    colours: bool,
}

static RESTORED_ON_PANIC: Once = Once::new();

impl Terminal {
    pub fn begin() -> std::io::Result<Self> {
        RESTORED_ON_PANIC.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                before(panic);
            }));
        });
        terminal::enable_raw_mode()?;
        // From here on the drop gives it back.
        let terminal = Terminal { colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) };
        execute!(stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(terminal)
    }

    /// Columns and rows.
    pub fn size(&self) -> (usize, usize) {
        let (width, height) = terminal::size().unwrap_or((80, 24));
        (width.into(), height.into())
    }

    /// Writes the whole screen at once, each line over the one before: nothing flickers.
    pub fn draw(&mut self, lines: &[Line]) -> std::io::Result<()> {
        let mut out = stdout().lock();
        queue!(out, terminal::BeginSynchronizedUpdate, cursor::MoveTo(0, 0))?;
        for (row, line) in lines.iter().enumerate() {
            queue!(out, cursor::MoveTo(0, u16::try_from(row).unwrap_or(u16::MAX)))?;
            for (text, look) in &line.parts {
                let attributes = look.attributes(self.colours);
                queue!(out, style::Print(attributes), style::Print(text), style::Print("\x1b[0m"))?;
            }
            queue!(out, terminal::Clear(terminal::ClearType::UntilNewLine))?;
        }
        queue!(out, terminal::Clear(terminal::ClearType::FromCursorDown), terminal::EndSynchronizedUpdate)?;
        out.flush()
    }

    /// The next key within this time.
    pub fn key(&mut self, within: Duration) -> std::io::Result<Option<Key>> {
        if !event::poll(within)? {
            return Ok(None);
        }
        let key = match event::read()? {
            Event::Key(key) if key.kind != KeyEventKind::Release => key,
            Event::Resize(..) => return Ok(Some(Key::Resized)),
            _ => return Ok(None),
        };
        Ok(match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Interrupt),
            KeyCode::Char(letter) => Some(Key::Letter(letter)),
            KeyCode::Enter => Some(Key::Enter),
            KeyCode::Esc => Some(Key::Escape),
            KeyCode::Backspace => Some(Key::Backspace),
            KeyCode::Up => Some(Key::Up),
            KeyCode::Down => Some(Key::Down),
            KeyCode::PageUp => Some(Key::PageUp),
            KeyCode::PageDown => Some(Key::PageDown),
            KeyCode::Home => Some(Key::Home),
            _ => None,
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// There is nobody to tell where it fails.
fn restore() {
    let _ = execute!(stdout(), LeaveAlternateScreen, cursor::Show);
    let _ = terminal::disable_raw_mode();
}
