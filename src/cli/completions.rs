//! `vmctl completions SHELL`: the script for a shell to complete our command line, including the names of guests, images and their parts.

use super::{App, ExitStatus, Outcome};

/// Print completions for a shell
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Args {
    pub fn run(self, app: &App) -> Outcome {
        app.ui.data(&script(self.shell))?;
        Ok(ExitStatus::Done)
    }
}

/// Returns clap's script for options and verbs, followed by ours, which asks `vmctl __complete` for the names that there
/// are where a name is typed.
fn script(shell: Shell) -> String {
    let mut command = super::help::command();
    let mut generated = Vec::new();
    let (generator, ours) = match shell {
        Shell::Bash => (clap_complete::Shell::Bash, BASH),
        Shell::Zsh => (clap_complete::Shell::Zsh, ZSH),
        Shell::Fish => (clap_complete::Shell::Fish, FISH),
    };
    clap_complete::generate(generator, &mut command, "vmctl", &mut generated);
    let mut text = String::from_utf8(generated).expect("clap writes its own names");
    if let Shell::Zsh = shell {
        text = text.replace(ZSH_BY_CLAP, "");
    }
    text.push_str(ours);
    text
}

const BASH: &str = r#"
_vmctl_with_names() {
    local names
    _vmctl "$@"
    if names=$(vmctl __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null); then
        COMPREPLY=($(compgen -W "$names" -- "${COMP_WORDS[COMP_CWORD]}"))
    fi
}
complete -F _vmctl_with_names -o bashdefault -o default vmctl
"#;

/// What clap ends its script with; ours does the same with our own function.
const ZSH_BY_CLAP: &str = r#"
if [ "$funcstack[1]" = "_vmctl" ]; then
    _vmctl "$@"
else
    compdef _vmctl vmctl
fi
"#;

/// zsh loads a file `_vmctl` of its search path as the body of a function of that name, and calls it for the first
/// completion; a script that is evaluated in .zshrc is not in such a function. Files are offered too: names of guests and
/// images may be files at many places.
const ZSH: &str = r#"
_vmctl_with_names() {
    local names
    if names=$(vmctl __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null); then
        compadd -- ${(f)names} || _files
        return
    fi
    _vmctl "$@"
}
compdef _vmctl_with_names vmctl
if [ "$funcstack[1]" = "_vmctl" ]; then
    _vmctl_with_names "$@"
fi
"#;

const FISH: &str = r#"
function __vmctl_names
    set -l words (commandline -opc) (commandline -ct)
    vmctl __complete -- $words[2..-1] 2>/dev/null
end
complete -c vmctl -n "__vmctl_names >/dev/null" -a "(__vmctl_names)"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zsh_completes_names_from_the_first_time_on() {
        let text = script(Shell::Zsh);
        assert_eq!(text.matches("compdef _vmctl").count(), 1, "clap's own registration is gone");
        assert_eq!(text.matches("funcstack").count(), 1);
        assert!(text.ends_with("    _vmctl_with_names \"$@\"\nfi\n"));
    }

    #[test]
    fn every_shell_gets_a_script_that_asks_for_names() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = script(shell);
            assert!(text.contains("vmctl __complete -- "), "{shell:?}");
            assert!(text.contains("completions"), "{shell:?}");
        }
    }
}
