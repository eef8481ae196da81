//! netgraph(4) nodes, through ngctl(8).

use super::program::{ProgramError, run};

/// The first hook `linkN` of an ng_bridge(4) node that nothing is connected to.
pub fn free_link(path: &str) -> Result<String, ProgramError> {
    Ok(free(&run("ngctl", &["show", path])?))
}

/// From ngctl's listing: below two lines of heads, each line begins with the name of a hook (`usr.sbin/ngctl/show.c`).
pub fn free(listing: &str) -> String {
    let taken: Vec<&str> = listing.lines().filter_map(|line| line.split_whitespace().next()).collect();
    // A node has a finite number of hooks, so that one is free.
    (0..).map(|number| format!("link{number}")).find(|name| !taken.contains(&name.as_str())).expect("numbers do not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_link_that_nothing_is_connected_to_is_free() {
        let listing = "  Name: bridge0         Type: bridge          ID: 00000005   Num hooks: 3\n\
            \u{20} Local hook      Peer name       Peer type    Peer ID         Peer hook\n\
            \u{20} ----------      ---------       ---------    -------         ---------\n\
            \u{20} link3           vm1             socket       0000000a        vmlink\n\
            \u{20} link1           em0             ether        00000002        upper\n\
            \u{20} link0           em0             ether        00000002        lower\n";
        assert_eq!(free(listing), "link2");
        assert_eq!(free(""), "link0");
    }
}
