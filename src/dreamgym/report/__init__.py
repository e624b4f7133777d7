"""The report: one HTML page that tells what a run did, with dreamed figures never passing for results."""
