//! Machines against each other in a network of one seed, and attackers against one machine.

mod attacks;
mod known;
mod life;
mod ways;
mod world;
