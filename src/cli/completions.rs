//! `vmctl completions SHELL`: the script for a shell to complete our command line, including guest names.

use clap::CommandFactory;

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

/// Returns clap's script for options and verbs, followed by ours, which asks `vmctl __complete-guests` for names if the
/// verb takes guests.
fn script(shell: Shell) -> String {
    let mut command = super::Cli::command();
    let mut generated = Vec::new();
    let (generator, ours) = match shell {
        Shell::Bash => (clap_complete::Shell::Bash, BASH),
        Shell::Zsh => (clap_complete::Shell::Zsh, ZSH),
        Shell::Fish => (clap_complete::Shell::Fish, FISH),
    };
    let verbs: Vec<String> = command
        .get_subcommands()
        .filter(|verb| {
            verb.get_positionals().any(|arg| arg.get_value_names().is_some_and(|n| n.iter().any(|n| n.starts_with("GUEST"))))
        })
        .map(|verb| verb.get_name().to_owned())
        .collect();
    clap_complete::generate(generator, &mut command, "vmctl", &mut generated);
    let mut text = String::from_utf8(generated).expect("clap writes its own names");
    if let Shell::Zsh = shell {
        text = text.replace(ZSH_BY_CLAP, "");
    }
    text.push_str(&ours.replace("@VERBS_BAR@", &verbs.join("|")).replace("@VERBS@", &verbs.join(" ")));
    text
}

const BASH: &str = r#"
_vmctl_with_guests() {
    local verb
    _vmctl "$@"
    for verb in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$verb" in
            @VERBS_BAR@)
                if [[ "${COMP_WORDS[COMP_CWORD]}" != -* ]]; then
                    COMPREPLY=($(compgen -W "$(vmctl __complete-guests 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}"))
                fi
                return 0
                ;;
        esac
    done
}
complete -F _vmctl_with_guests -o bashdefault -o default vmctl
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
/// completion; a script that is evaluated in .zshrc is not in such a function.
const ZSH: &str = r#"
_vmctl_with_guests() {
    local verb
    for verb in ${words[2,CURRENT-1]}; do
        case $verb in
            (@VERBS_BAR@)
                if [[ ${words[CURRENT]} != -* ]]; then
                    compadd -- ${(f)"$(vmctl __complete-guests 2>/dev/null)"}
                    return
                fi
                ;;
        esac
    done
    _vmctl "$@"
}
compdef _vmctl_with_guests vmctl
if [ "$funcstack[1]" = "_vmctl" ]; then
    _vmctl_with_guests "$@"
fi
"#;

const FISH: &str = r#"
complete -c vmctl -n "__fish_seen_subcommand_from @VERBS@" -f -a "(vmctl __complete-guests 2>/dev/null)"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zsh_completes_guest_names_from_the_first_time_on() {
        let text = script(Shell::Zsh);
        assert_eq!(text.matches("compdef _vmctl").count(), 1, "clap's own registration is gone");
        assert_eq!(text.matches("funcstack").count(), 1);
        assert!(text.ends_with("    _vmctl_with_guests \"$@\"\nfi\n"));
    }

    #[test]
    fn every_shell_gets_a_script_that_asks_for_guest_names() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = script(shell);
            assert!(text.contains("vmctl __complete-guests"), "{shell:?}");
            assert!(text.contains("completions"), "{shell:?}");
            assert!(!text.contains('@') || !text.contains("@VERBS"), "{shell:?}");
        }
    }
}
