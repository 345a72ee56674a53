//! stub until h3 merges
use crate::config::{Codec, Format};
use sqlx::postgres::{PgRow, PgTypeInfo};
/// stub
#[derive(Debug)]
pub struct RowPlan {}
/// stub
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct UnsupportedType {}
/// stub
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct EncodeError {}
impl RowPlan {
    /// stub
    pub fn new(_: &[(String, PgTypeInfo)], _: &Format) -> Result<Self, UnsupportedType> {
        Ok(Self {})
    }
    /// stub
    pub fn write_row(&self, _: &PgRow, _: usize, _: &mut Vec<u8>) -> Result<(), EncodeError> {
        Ok(())
    }
    /// stub
    pub fn write_text(&self, _: &PgRow, _: usize, _: usize, _: &mut String) -> Result<bool, EncodeError> {
        Ok(true)
    }
}
/// stub
pub fn compress(_: Codec, _: &[u8], _: &mut Vec<u8>) {}
