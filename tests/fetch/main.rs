//! Downloads from servers that cut, lie, stall, redirect, serve ranges wrongly, change files and show bad certificates;
//! processes that are killed; and the commands.

mod commands;
mod hostile;
mod killed;
mod server;
mod tls;
mod world;
