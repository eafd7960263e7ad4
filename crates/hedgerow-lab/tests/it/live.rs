//! Live scenarios: real daemons in small plants of their own, with real traffic, through what a year
//! brings: days that pass, power cuts, full disks, wrong clocks, restored backups.

mod account;
mod clocks;
mod confirmed;
mod denied;
mod device;
mod disks;
mod ended;
mod entry;
mod grace;
mod killed;
mod loaded;
mod names;
mod orders;
mod planned;
mod plot;
mod renewal;
mod restore;
mod seen;
mod table;
mod tls;
mod ways;
