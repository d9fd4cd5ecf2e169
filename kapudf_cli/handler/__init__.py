"""The kit: what makes handlers short; `kapudf_cli` exports what is meant for their authors."""
