"""What people look at: figures, HTML reports and the files of an evaluation."""
