pub fn write(_: &crate::measured::Measured) -> anyhow::Result<()> { Ok(()) }
