//! `pgtenant completions`: what makes a shell complete commands and options.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pgtenant completions bash > /etc/bash_completion.d/pgtenant
  pgtenant completions zsh > \"${fpath[1]}/_pgtenant\"
  pgtenant completions fish > ~/.config/fish/completions/pgtenant.fish

Exit status: 0 printed; 1 standard output is closed; 2 the arguments.")]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pgtenant", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
