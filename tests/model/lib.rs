//! The model itself is the test `model`; a package of its own lets it be compiled with optimisation.
