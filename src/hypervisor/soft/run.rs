//! The dispatcher: blocks, budget, events, HLT, and the vCPUs in turn.
