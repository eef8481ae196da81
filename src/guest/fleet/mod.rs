//! Fleets: the guests and switches that one file declares.
pub mod apply; // execution of a plan
pub mod membership; // membership of guests in fleets
pub mod plan; // changes that applying a fleet file would make
mod secrets; // secrets of a fleet, in private files
pub mod switches; // the switches that a fleet's guests are on
